"""What to do while a server is away: ask again, for a while; the run goes on meanwhile.

An API server that is restarted, a connection that breaks and a gateway that is overloaded pass. A refusal does not:
whoever may not ask now may not ask in 15 minutes either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from medflow.errors import PlatformError
from medflow.platform.kubernetes.cluster import refused

Result = TypeVar("Result")
POLL_SECONDS = 3.0
#: A server or an API that is away is asked again for so long.
PATIENCE_SECONDS = 900.0
TOO_MANY_REQUESTS = 429


def passes(error: BaseException) -> bool:
    """Whether an error may be gone at another try: no answer, or one of a server that is in trouble itself."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return error.status == TOO_MANY_REQUESTS or not 400 <= (error.status or 0) < 500
    # requests' errors are OSErrors; ZenML's client raises RuntimeError where its server answers with one.
    return isinstance(error, (OSError, RuntimeError, HTTPError))


def told(error: BaseException) -> str:
    """In one line, that patience is at its end."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return f"a server has not answered for {PATIENCE_SECONDS:.0f} s: {words}"[:300]


def patiently(
    ask: Callable[[], Result], say: Callable[[str], None], *, given_up: threading.Event | None = None
) -> Result:
    """What ``ask`` returns, asked again for 15 minutes while a server does not answer.

    Raises PlatformError after that, and at once where the API server refuses. With ``given_up`` set, what ``ask``
    raises is raised.
    """
    from kubernetes.client import ApiException

    given_up = given_up or threading.Event()
    until = time.monotonic() + PATIENCE_SECONDS
    said = False
    while True:
        try:
            return ask()
        except Exception as error:
            if isinstance(error, ApiException) and not passes(error):
                raise refused(error) from error
            if given_up.is_set() or not passes(error):
                raise
            if time.monotonic() > until:
                raise PlatformError(
                    told(error), hint="the run goes on without this process; `medflow runs` tells how it went"
                ) from error
            if not said:
                say(f"a server does not answer ({type(error).__name__}), asking again")
                said = True
            given_up.wait(POLL_SECONDS)


class Outages:
    """Since when something that is looked at again and again has given no answer. Each outage is said once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._since: dict[str, float] = {}

    def look(self, what: str, ask: Callable[[], Result], meanwhile: Result) -> Result:
        """What ``ask`` returns, or ``meanwhile`` where it gets no answer.

        Raises PlatformError where there was none for 15 minutes, and what ``ask`` raises where that does not pass.
        """
        try:
            found = ask()
        except Exception as error:
            if not passes(error):
                raise
            self._miss(what, error)
            return meanwhile
        self._since.pop(what, None)
        return found

    def _miss(self, what: str, error: Exception) -> None:
        now = time.monotonic()
        if not self._since:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.say(f"a server does not answer ({words}); the steps go on and are looked at again")
        if now - self._since.setdefault(what, now) > PATIENCE_SECONDS:
            raise PlatformError(told(error), hint="look at the cluster; the same command goes on from what is done")

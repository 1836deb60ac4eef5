"""The Kubernetes client's connections, with the limits in time that it has none of.

A connection whose other end is gone without a word would be waited for until the machine's own limit, which is hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes.client import rest
from urllib3 import Retry

#: For an answer, or for the next part of one: a log is longer.
REQUEST_SECONDS = 30.0
#: What was not sent is sent again; an answer that did not come is asked for once more, where asking changes nothing.
RETRIES = Retry(total=5, connect=5, read=1, backoff_factor=0.2)


class Limited(rest.RESTClientObject):  # type: ignore[misc]
    """Every request ends; who gives a limit of their own keeps it."""

    def __init__(self, configuration: Any, *given: Any, **words: Any) -> None:
        if configuration.retries is None:
            configuration.retries = RETRIES
        super().__init__(configuration, *given, **words)

    def request(self, *words: Any, _request_timeout: Any = None, **more: Any) -> Any:
        return super().request(*words, _request_timeout=_request_timeout or REQUEST_SECONDS, **more)


@contextmanager
def limited() -> Iterator[None]:
    """Every client that is made in this block has the limits: ZenML makes its own."""
    before = rest.RESTClientObject
    rest.RESTClientObject = Limited
    try:
        yield
    finally:
        rest.RESTClientObject = before

"""Tell which step is running, from ZenML's own log, in medflow's own lines.

ZenML says when a step starts, ends or is taken from the cache, at level INFO among much else. A handler
picks those lines out of the two modules that say them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINES = (
    (re.compile(r"Step `?([\w.-]+)`? has started"), "{0} …"),
    (re.compile(r"Step `?([\w.-]+)`? has finished in `?([\d.hms ]+)`?"), "{0} done in {1}"),
    (re.compile(r"Using cached version of step `?([\w.-]+)`?"), "{0} cached"),
)


SPEAKERS = ("zenml.orchestrators.step_launcher", "zenml.orchestrators.step_run_utils")


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Within this block each step is announced by ``say``."""
    handler = _Announcer(say)
    loggers = [logging.getLogger(name) for name in SPEAKERS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
            logger.removeHandler(handler)


class _Announcer(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.say = say
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for pattern, line in LINES:
            match = pattern.search(text)
            told = line.format(*match.groups()) if match else ""
            if told and told != self.last:
                self.last = told
                self.say(told)

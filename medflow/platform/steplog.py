"""Tell which step is running, from ZenML's own log, in medflow's own lines.

ZenML says when a step starts, ends or is taken from the cache, at level INFO among much else. A handler
picks those lines out; everything below a warning is otherwise left unsaid.
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


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Within this block each step is announced by ``say``."""
    logger = logging.getLogger("zenml")
    handler = _Announcer(say)
    loggers = [logger, *(logging.getLogger(name) for name in _SPEAKERS)]
    levels = [item.level for item in loggers]
    quiet = [(item, item.level) for item in logging.getLogger().handlers]
    for item in loggers:
        item.setLevel(logging.INFO)
        item.addHandler(handler)
    for item, level in quiet:
        item.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)
            item.removeHandler(handler)
        for item, level in quiet:
            item.setLevel(level)


_SPEAKERS = (
    "zenml.orchestrators.step_launcher",
    "zenml.orchestrators.step_runner",
    "zenml.orchestrators.step_run_utils",
    "zenml.orchestrators.local.local_orchestrator",
)


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

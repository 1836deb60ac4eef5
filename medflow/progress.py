"""How a long operation says where it is: a bar on a terminal, a timestamped line elsewhere.

Bars never go into a log store (they cost more than the work there), so outside a terminal
at most one line is written every ten seconds, and one at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

Item = TypeVar("Item")
LINE_EVERY_SECONDS = 10.0


def say(line: str) -> None:
    """One plain line on standard error, with the time outside a terminal."""
    stamp = "" if sys.stderr.isatty() else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} "
    print(f"{stamp}{line}", file=sys.stderr, flush=True)


def track(items: Iterable[Item], *, what: str, total: int) -> Iterator[Item]:
    """Yield ``items``, telling how many of ``total`` are done."""
    if sys.stderr.isatty():
        yield from _bar(items, what, total)
    else:
        yield from _lines(items, what, total)


def _bar(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    yield from rich_track(items, description=what, total=total, console=console, transient=True)


def _lines(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    start = said = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= LINE_EVERY_SECONDS and done < total:
            said = now
            say(f"{what}: {done} of {total}, {done / (now - start):.1f}/s")
    say(f"{what}: {done} of {total} in {time.monotonic() - start:.1f} s")

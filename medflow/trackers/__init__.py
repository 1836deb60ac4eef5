"""Trackers beside MLflow, and what keeps any tracker from ending a run.

``opened`` gives one ``tracking.Tracker`` for a training: it tells every sink, and a sink that fails costs one
warning and its own record, nothing else. The training log in the model's card holds every epoch in any case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from medflow.errors import MedflowError
from medflow.progress import say
from medflow.tracking import Tracker

Value = str | int | float | bool
Ending = Literal["FINISHED", "FAILED"]
REST_SECONDS = 60.0
"""A sink that failed is left alone for so long: each call to a server that hangs costs its time-out."""


class Sink(Tracker, Protocol):
    """A tracker of one training, closed at its end."""

    def finish(self, ending: Ending) -> None: ...


@dataclass(frozen=True)
class Offer:
    """A sink's name for messages, and how it is opened."""

    name: str
    open: Callable[[], Sink]


class Tolerant:
    """``Sink`` around another that may fail at any call, also at being opened."""

    def __init__(self, offer: Offer) -> None:
        self.name = offer.name
        self._sink: Sink | None = None
        self._warned = False
        self._rests_until = 0.0
        self._try(lambda: self._open(offer))

    def params(self, values: Mapping[str, Value]) -> None:
        self._tell(lambda sink: sink.params(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._tell(lambda sink: sink.metrics(values, step))

    def file(self, path: Path, folder: str) -> None:
        self._tell(lambda sink: sink.file(path, folder))

    def model(self, files: Sequence[Path], name: str) -> None:
        self._tell(lambda sink: sink.model(files, name))

    def finish(self, ending: Ending) -> None:
        self._rests_until = 0.0
        self._tell(lambda sink: sink.finish(ending))

    def _open(self, offer: Offer) -> None:
        self._sink = offer.open()

    def _tell(self, call: Callable[[Sink], None]) -> None:
        sink = self._sink
        if sink is not None and time.monotonic() >= self._rests_until:
            self._try(lambda: call(sink))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._rests_until = time.monotonic() + REST_SECONDS
            if not self._warned:
                self._warned = True
                say(f"warning: {self.name} does not answer, the run goes on without it ({_why(error)})")


class Fan:
    """``Sink`` that tells several, in order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)

    def params(self, values: Mapping[str, Value]) -> None:
        for sink in self.sinks:
            sink.params(values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for sink in self.sinks:
            sink.metrics(values, step)

    def file(self, path: Path, folder: str) -> None:
        for sink in self.sinks:
            sink.file(path, folder)

    def model(self, files: Sequence[Path], name: str) -> None:
        for sink in self.sinks:
            sink.model(files, name)

    def finish(self, ending: Ending) -> None:
        for sink in self.sinks:
            sink.finish(ending)


@contextmanager
def opened(offers: Sequence[Offer]) -> Iterator[Tracker]:
    """One tracker over all offers, closed as FINISHED, or as FAILED where the block raises."""
    fan = Fan([Tolerant(offer) for offer in offers])
    try:
        yield fan
    except BaseException:
        fan.finish("FAILED")
        raise
    fan.finish("FINISHED")


def _why(error: Exception) -> str:
    """Our own words, or else the class alone: a client's message may hold a URL with a password, or a key."""
    return f"{error.message}; {error.hint}" if isinstance(error, MedflowError) else type(error).__name__

"""Fires of this machine's schedules that nothing came of: its process did not run, or was held up over several."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

from pydantic import TypeAdapter

from medflow import atomic, cron
from medflow.config.sections.schedules import ScheduleConfig
from medflow.platform.scheduling import planning
from medflow.records import Record

#: Fires are whole minutes.
BEFORE = timedelta(seconds=1)


class Known(Record):
    """Until when it is known what became of a schedule's fires, and at which times it had them."""

    cron: str
    time_zone: str
    until: datetime


KNOWN = TypeAdapter(dict[str, Known])


class Past:
    """What is known of schedules' fires, kept in a file from one process to the next."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.before = self._read()
        self.known: dict[str, Known] = {}

    def begin(self, schedule: ScheduleConfig, now: datetime) -> None:
        """From now on a schedule fires: tell what it did not since it last did, with the same times.

        Of one that is paused nothing is due, nor later of the time until it is resumed.
        """
        if schedule.paused:
            self._write()
            return
        known = Known(cron=schedule.cron, time_zone=schedule.time_zone, until=now)
        before = self.before.get(schedule.name, known)
        if (before.cron, before.time_zone) == (known.cron, known.time_zone):
            self._tell(schedule.name, before, now, "while no `medflow schedule run` ran")
        self._keep(schedule.name, known)

    def due(self, name: str, at: datetime) -> None:
        """A schedule was due, whatever comes of it: tell of those before it that came together with it."""
        known = self.known[name]
        self._tell(name, known, at - BEFORE, "while this process was held up")
        self._keep(name, known.model_copy(update={"until": at}))

    def _tell(self, name: str, known: Known, until: datetime, why: str) -> None:
        missed = list(islice(cron.fires(known.cron, known.time_zone, known.until, until), planning.MANY))
        if missed:
            self.say(f"{name}: {planning.times(missed)} missed {why}: {planning.span(missed)}")

    def _keep(self, name: str, known: Known) -> None:
        self.known[name] = known
        self._write()

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(self.path, KNOWN.dump_json(self.known, indent=1))
        except OSError as problem:  # the schedules fire all the same
            self.say(f"warning: what is missed from here on cannot be told later: {problem}")

    def _read(self) -> dict[str, Known]:
        try:
            return KNOWN.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            self.say(f"warning: what was missed so far is not known: {self.path} cannot be read")
            return {}

"""Schedules of this machine, which fire as long as this process lives.

Each run is a process of its own, so that it reads code, settings and data as they are then, and ends when it is told
to. One runs at a time: they would share the machine's cores.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobEvent,
    JobSubmissionEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger

from medflow import cron
from medflow.config.sections.schedules import ScheduleConfig
from medflow.platform.scheduling.past import Past

#: Seconds that a run has to end by itself when this process is ended.
END_SECONDS = 60.0
Triggers = Callable[[ScheduleConfig], BaseTrigger]


class CronTrigger(BaseTrigger):  # type: ignore[misc]
    """When a schedule fires, for APScheduler."""

    def __init__(self, schedule: ScheduleConfig) -> None:
        self.schedule = schedule

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        found = cron.next_fire(self.schedule.cron, self.schedule.time_zone, previous_fire_time or now)
        return found.astimezone(UTC) if found else None


class Runner:
    """Fires schedules until it is interrupted. ``commands`` holds the command line of each one's run, by its name.

    With a ``past``, fires that nothing came of are told too.
    """

    def __init__(
        self,
        schedules: Sequence[ScheduleConfig],
        commands: Mapping[str, Sequence[str]],
        say: Callable[[str], None],
        triggers: Triggers = CronTrigger,
        past: Past | None = None,
    ) -> None:
        self.say, self.commands = say, commands
        self.going: dict[str, subprocess.Popen[bytes]] = {}
        self.stopping = False
        #: Held while a run is started and while all are told to end, so that none starts in between.
        self.starting = threading.Lock()
        self.scheduler = BlockingScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)
        for schedule in schedules:
            if past is not None:
                past.begin(schedule, datetime.now(UTC))
            if schedule.paused:
                say(f"{schedule.name}: paused")
                continue
            self.scheduler.add_job(
                self._fire, triggers(schedule), args=[schedule.name], id=schedule.name, max_instances=1, coalesce=True,
                misfire_grace_time=schedule.start_within,
            )  # fmt: skip
            say(f"{schedule.name}: next at {_next(schedule)}")
        self.scheduler.add_listener(self._tell, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES | EVENT_JOB_ERROR)
        if past is not None:
            self.scheduler.add_listener(partial(_note, past), EVENT_JOB_SUBMITTED | EVENT_JOB_MAX_INSTANCES)

    def run(self) -> None:
        """Until KeyboardInterrupt, which a SIGTERM is too: the run that goes on is then stopped."""
        try:
            self.scheduler.start()
        finally:
            self._stop()

    def _fire(self, name: str) -> None:
        started = datetime.now(UTC)
        with self.starting:
            if self.stopping:  # it was due while another ran, and the pool hands it out all the same
                self.say(f"{name}: left out: the schedules are stopped")
                return
            self.say(f"{name}: starts")
            process = subprocess.Popen(self.commands[name], stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
            self.going[name] = process
        with process:
            code = process.wait()
        del self.going[name]
        took = (datetime.now(UTC) - started).total_seconds()
        self.say(f"{name}: {'done' if code == 0 else f'FAILED with exit code {code}'} after {took:.0f} s")

    def _tell(self, event: JobEvent) -> None:
        told = {
            EVENT_JOB_MISSED: "missed: it could not start in time",
            EVENT_JOB_MAX_INSTANCES: "left out: its run before goes on",
            EVENT_JOB_ERROR: f"could not start: {getattr(event, 'exception', None)}",
        }
        self.say(f"{event.job_id}: {told[event.code]}")

    def _stop(self) -> None:
        with self.starting:
            self.stopping = True
        for name, process in list(self.going.items()):
            try:
                self.say(f"{name}: is stopped")
                process.terminate()
                process.wait(END_SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # or whoever waits asks a second time
                process.kill()
        if self.scheduler.running:
            self.scheduler.shutdown(wait=True)


def _note(past: Past, event: JobSubmissionEvent) -> None:
    past.due(event.job_id, max(event.scheduled_run_times).astimezone(UTC))


def _next(schedule: ScheduleConfig) -> str:
    found = cron.next_fire(schedule.cron, schedule.time_zone, datetime.now(UTC))
    return f"{found:%Y-%m-%d %H:%M %Z}" if found else "no time"

"""Schedules of this machine, which fire as long as this process lives.

Each run is a process of its own, so that it reads code, settings and data as they are then, and ends when it is told
to. One runs at a time: they would share the machine's cores.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger

from medflow import cron
from medflow.config.sections.schedules import ScheduleConfig

#: Seconds that a run has to end by itself when this process is ended.
END_SECONDS = 60.0
Triggers = Callable[[ScheduleConfig], BaseTrigger]


def trigger_of(schedule: ScheduleConfig) -> BaseTrigger:
    return cron.trigger(schedule.cron, schedule.time_zone)


class Runner:
    """Fires schedules until it is interrupted. ``commands`` holds the command line of each one's run, by its name."""

    def __init__(
        self,
        schedules: Sequence[ScheduleConfig],
        commands: Mapping[str, Sequence[str]],
        say: Callable[[str], None],
        triggers: Triggers = trigger_of,
    ) -> None:
        self.say, self.commands = say, commands
        self.going: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler = BlockingScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)
        for schedule in schedules:
            if schedule.paused:
                say(f"{schedule.name}: paused")
                continue
            self.scheduler.add_job(
                self._fire, triggers(schedule), args=[schedule.name], id=schedule.name, max_instances=1, coalesce=True,
                misfire_grace_time=schedule.start_within,
            )  # fmt: skip
            say(f"{schedule.name}: next at {_next(schedule)}")
        self.scheduler.add_listener(self._tell, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES | EVENT_JOB_ERROR)

    def run(self) -> None:
        """Until KeyboardInterrupt, which a SIGTERM is too: the run that goes on is then stopped."""
        try:
            self.scheduler.start()
        finally:
            self._stop()

    def _fire(self, name: str) -> None:
        self.say(f"{name}: starts")
        started = datetime.now(UTC)
        with subprocess.Popen(self.commands[name], stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno()) as process:
            self.going[name] = process
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
        self.scheduler.remove_all_jobs()
        for name, process in list(self.going.items()):
            self.say(f"{name}: is stopped")
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        if self.scheduler.running:
            self.scheduler.shutdown(wait=True)


def _next(schedule: ScheduleConfig) -> str:
    found = trigger_of(schedule).get_next_fire_time(None, datetime.now(UTC))
    return f"{found:%Y-%m-%d %H:%M %Z}" if found else "no time"

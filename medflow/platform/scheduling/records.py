"""What is known of a schedule from its three sources: the file, ZenML, and the cluster. And what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from medflow.config.sections import RunConfig
from medflow.config.sections.schedules import ScheduleConfig
from medflow.records import Record

#: Finished jobs of a schedule that the cluster keeps, each with its pod: what `plan` can tell of.
SUCCEEDED_KEPT, FAILED_KEPT = 3, 5
#: ZenML's words for a run that is over.
OVER = ("completed", "failed", "stopped")
#: Instead of a status, of a run that somebody has deleted.
GONE = "gone from the server"
#: Within the reason of a run that gave way to another one of its dataset.
GOING_ON = "is going on already"


@dataclass(frozen=True)
class Entry:
    """A schedule of the file, with the settings of its runs."""

    schedule: ScheduleConfig
    config: RunConfig


class Timing(Record):
    """What of a CronJob can be changed in place. None: not set, which is never what is wanted."""

    cron: str
    time_zone: str | None
    paused: bool
    overlap: str | None
    """Kubernetes' concurrencyPolicy."""
    start_within: int | None
    """Seconds."""
    succeeded_kept: int | None
    failed_kept: int | None

    @classmethod
    def of(cls, schedule: ScheduleConfig) -> Timing:
        return cls(
            cron=schedule.cron,
            time_zone=schedule.time_zone,
            paused=schedule.paused,
            overlap="Forbid",
            start_within=schedule.start_within,
            succeeded_kept=SUCCEEDED_KEPT,
            failed_kept=FAILED_KEPT,
        )


class Frozen(Record):
    """What ZenML puts into a CronJob for good; another value needs another CronJob."""

    image: str
    code: str
    """Digest of the code and the files that each step's cache key holds."""
    settings: str
    """Digest of the run's settings, of its pods' and of the stack's."""


class Key(StrEnum):
    """What has become of the API key on which a schedule's token hangs."""

    VALID = "valid"
    GONE = "gone from the server"
    INACTIVE = "not active any more"
    ROTATED = "rotated since"


class Wanted(Record):
    """A schedule as the file says."""

    name: str
    timing: Timing
    frozen: Frozen


class Fire(Record):
    """One job of a CronJob."""

    job: str
    at: datetime
    """When it was due."""
    ended: datetime | None = None
    """None while it goes on."""
    run_id: str | None = None
    """ZenML's run, as soon as there is one."""
    run_status: str = ""
    reason: str | None = None
    """Why it failed, or waits."""
    failed: bool = False
    """Whether the job failed, whatever became of a run: the cluster keeps a few of these, and a few of the others."""

    @property
    def broken_off(self) -> bool:
        """Whether its job failed while its run went on: nobody follows a scheduled run, so ZenML never hears of it."""
        return self.failed and self.run_id is not None and self.run_status not in (*OVER, GONE)


class Ran(Record):
    """A run of a schedule at the ZenML server, whose job the cluster may have forgotten."""

    at: datetime
    """When its fire was due, or where that is not known when it began."""
    ended: datetime | None = None


class Standing(Record):
    """A CronJob that medflow made."""

    name: str
    """The schedule's."""
    job: str
    """The CronJob's own name."""
    timing: Timing
    frozen: Frozen
    edited: bool
    """Whether its pods' template is no longer what was written."""
    key: Key
    schedule_id: str
    """ZenML's."""
    snapshot_id: str
    since: datetime
    """When it last began to be due: made, resumed, or given another time."""
    last_fire: datetime | None = None
    fires: tuple[Fire, ...] = ()
    """Those that the cluster still knows, oldest first."""
    runs: tuple[Ran, ...] = ()
    """The newest ones that ZenML knows, in any order."""
    warnings: tuple[str, ...] = ()
    """What the cluster says of it."""


class Registered(Record):
    """A schedule at the ZenML server."""

    name: str
    id: str
    cron: str
    active: bool


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    RECREATE = "re-create"
    DELETE = "delete"
    NOTHING = "nothing"


class Change(Record):
    """What is to be done about one schedule, and why."""

    name: str
    action: Action
    why: tuple[str, ...] = ()


class Fault(Record):
    """What went wrong with a schedule that stands as it should."""

    name: str
    text: str

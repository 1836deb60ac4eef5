"""What runs by itself, `configs/schedules.yaml`: which dataset, when, and where."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from medflow import cron
from medflow.config.sections.base import Section

LOCAL = "local"
NAME = r"^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$"


class ScheduleConfig(Section):
    name: str = Field(pattern=NAME)
    """Lower-case letters, digits and dashes, 36 at most. Another name is another schedule."""
    dataset: str
    """A name (NAME.yaml in the working folder, or shipped), or the path of a YAML, as `medflow run` takes it."""
    cron: str
    """Minute, hour, day, month, weekday: `0 2 * * *` is two o'clock every night, `30 6 * * mon-fri` on workdays."""
    time_zone: str = "UTC"
    """The zone of the cron expression, such as Europe/Berlin."""
    on: str | None = None
    """A place of configs/on, or the path of a YAML; None: that of the file."""
    source: str | None = None
    """As `--source` of `medflow run`: `kaggle`, s3://BUCKET/PREFIX, or on this machine a folder or archive."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings over those of the dataset's YAML, by dotted key, such as `train.epochs: 2`."""
    only_when_the_data_changed: bool = False
    """End before the first step where data, code and settings are those of the dataset's last completed run."""
    paused: bool = False
    """Known and checked, and never fires."""
    start_within: int = Field(3600, ge=60)
    """Seconds within which a run may start late, as after an outage; later it is missed."""

    @field_validator("cron")
    @classmethod
    def _cron_fits(cls, value: str) -> str:
        cron.parse(value)
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        cron.check_zone(value)
        return value


class SchedulesConfig(Section):
    on: str = LOCAL
    """Where a schedule runs that does not say. A cluster that is named here is also looked at when no schedule is left.

    All schedules of a file that run on a cluster run on one and the same.
    """
    schedules: tuple[ScheduleConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> SchedulesConfig:
        names = [schedule.name for schedule in self.schedules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"schedules: two are called {twice[0]!r}; give one of them another `name`")
        return self

    def place_of(self, schedule: ScheduleConfig) -> str:
        return schedule.on or self.on

    @property
    def clusters(self) -> tuple[str, ...]:
        """The places that are no `local`, each once."""
        places = [self.on, *(self.place_of(schedule) for schedule in self.schedules)]
        return tuple(dict.fromkeys(place for place in places if place != LOCAL))

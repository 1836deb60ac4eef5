"""Cron expressions of five fields, with the meaning that Kubernetes gives them, on this machine too.

Kubernetes reads them by robfig/cron's standard parser (https://pkg.go.dev/github.com/robfig/cron/v3#hdr-CRON_Expression_Format).
APScheduler's own ``from_crontab`` is not used: its weekday 0 is Monday, and it fires where day and weekday both match,
while cron fires where either does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
#: The most days that each month can have.
LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
RANGE = re.compile(r"(?P<all>[*?])|(?P<first>\w+)(?:-(?P<last>\w+))?", re.ASCII)


@dataclass(frozen=True)
class _Field:
    """One of the five fields: its name, its range, and names that stand for numbers from ``low`` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def values(self, text: str) -> frozenset[int]:
        """Every number that a field's text means. Raises ValueError."""
        return frozenset(value for part in text.split(",") for value in self._part(part))

    def _part(self, text: str) -> range:
        span, slash, every = text.partition("/")
        match = RANGE.fullmatch(span)
        if match is None or (slash and not every.isdecimal()):
            raise ValueError(f"{self.name}: expected *, N, N-M, */N or N-M/N, found {text!r}")
        if slash and int(every) == 0:
            raise ValueError(f"{self.name}: expected a step of at least 1, found {text!r}")
        first = self.low if match["all"] else self._number(match["first"])
        if match["all"] or (slash and not match["last"]):
            last = self.high
        else:
            last = self._number(match["last"] or match["first"])
        if first > last:
            raise ValueError(f"{self.name}: expected a range from low to high, found {text!r}")
        return range(first, last + 1, int(every or 1))

    def _number(self, text: str) -> int:
        if text.lower() in self.names:
            return self.low + self.names.index(text.lower())
        if not text.isdecimal() or not self.low <= int(text) <= self.high:
            names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
            raise ValueError(f"{self.name}: expected {self.low} to {self.high}{names}, found {text!r}")
        return int(text)


FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, MONTHS),
    _Field("weekday", 0, 6, WEEKDAYS),
)


@dataclass(frozen=True)
class Cron:
    """When a schedule fires: minutes, hours, days, months (from 1) and weekdays (0 is Sunday)."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    """Whether a day fires that matches `days` or `weekdays`, as where both are restricted; else both must match."""


def parse(text: str) -> Cron:
    """Read an expression. Raises ValueError that says which field is wrong, what was expected and found."""
    parts = text.split()
    if len(parts) != len(FIELDS):
        names = ", ".join(field.name for field in FIELDS)
        raise ValueError(f"expected five fields ({names}), found {text!r}")
    minutes, hours, days, months, weekdays = (field.values(part) for field, part in zip(FIELDS, parts, strict=True))
    restricted = [not any(_is_star(item) for item in part.split(",")) for part in (parts[2], parts[4])]
    cron = Cron(minutes, hours, days, months, weekdays, either=all(restricted))
    if not cron.either and not any(day <= LENGTHS[month - 1] for month in months for day in days):
        raise ValueError(f"expected a day that its months have, found {text!r}, which never fires")
    return cron


def _is_star(text: str) -> bool:
    """Whether a part leaves the day open: a step above 1 restricts it."""
    span, _, every = text.partition("/")
    return span in ("*", "?") and int(every or 1) == 1


def trigger(text: str, zone: str) -> BaseTrigger:
    """When an expression fires in a time zone, for APScheduler. Raises ValueError."""
    from apscheduler.triggers.combining import OrTrigger
    from apscheduler.triggers.cron import CronTrigger

    cron = parse(text)

    def of(days: frozenset[int], weekdays: frozenset[int]) -> CronTrigger:
        return CronTrigger(
            minute=_listed(cron.minutes),
            hour=_listed(cron.hours),
            day=_listed(days),
            month=_listed(cron.months),
            day_of_week=",".join(WEEKDAYS[day] for day in sorted(weekdays)),
            second="0",
            timezone=ZoneInfo(zone),
        )

    if not cron.either:
        return of(cron.days, cron.weekdays)
    return OrTrigger([of(cron.days, FIELDS[4].values("*")), of(FIELDS[2].values("*"), cron.weekdays)])


def fires(text: str, zone: str, after: datetime, until: datetime) -> Iterator[datetime]:
    """The moments in (after, until] at which an expression fires, in order; both ends know their zone."""
    when = trigger(text, zone)
    last = after
    while True:
        # A moment later: APScheduler counts the start in.
        found = when.get_next_fire_time(None, last + timedelta(microseconds=1))
        if found is None or found > until:
            return
        yield found
        last = found


def check_zone(name: str) -> None:
    """Raise ValueError for what is no time zone of the IANA database, or would be one machine's own."""
    if name.lower() in ("local", "localtime") or name not in available_timezones():
        raise ValueError(f"expected a time zone such as UTC or Europe/Berlin, found {name!r}")


def _listed(values: frozenset[int]) -> str:
    return ",".join(str(value) for value in sorted(values))

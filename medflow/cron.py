"""Cron expressions of five fields, with the meaning that Kubernetes gives them, on this machine too.

Kubernetes reads them by robfig/cron's standard parser (https://pkg.go.dev/github.com/robfig/cron/v3#hdr-CRON_Expression_Format).
Where clocks are put forward, what lies in the hour that is left out does not fire; where they are put back, what lies
in the hour that comes twice fires twice (the same, ``spec_test.go``). APScheduler's own trigger is not used: its
weekday 0 is Monday, it fires where day and weekday both match, while cron fires where either does, and its hours
differ on both of these days.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import product
from zoneinfo import ZoneInfo, available_timezones

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
#: The most days that each month can have.
LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
#: Whatever fires does so within these days: a leap year may be eight years away.
LONGEST = timedelta(days=8 * 366)
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
        if match is None or (slash and not (every.isascii() and every.isdecimal())):
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

    def names(self, day: date) -> bool:
        """Whether it fires on a day at all."""
        # Python's weekday 0 is Monday.
        matches = (day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays)
        return day.month in self.months and (any(matches) if self.either else all(matches))


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


def fires(text: str, zone: str, after: datetime, until: datetime) -> Iterator[datetime]:
    """The moments in (after, until] at which an expression fires, in order and in UTC; both ends know their zone.

    Raises ValueError where the expression cannot be read, KeyError where there is no such zone.
    """
    cron, place = parse(text), ZoneInfo(zone)
    day, last = after.astimezone(place).date(), until.astimezone(place).date()
    while day <= last:
        if cron.names(day):
            yield from (moment for moment in _moments(cron, day, place) if after < moment <= until)
        day += timedelta(days=1)


def next_fire(text: str, zone: str, after: datetime) -> datetime | None:
    """The first moment after another at which an expression fires, in its zone; None for what never fires."""
    found = next(fires(text, zone, after, after + LONGEST), None)
    return found.astimezone(ZoneInfo(zone)) if found else None


def _moments(cron: Cron, day: date, place: ZoneInfo) -> list[datetime]:
    """Every moment of a day at which the zone's clocks show a time that the expression names."""
    found: set[datetime] = set()
    for hour, minute, fold in product(cron.hours, cron.minutes, (0, 1)):
        shown = datetime.combine(day, time(hour, minute))
        moment = shown.replace(tzinfo=place, fold=fold).astimezone(UTC)
        # Python gives a moment to a time that is left out as well; clocks show another time then.
        if moment.astimezone(place).replace(tzinfo=None) == shown:
            found.add(moment)
    return sorted(found)


def check_zone(name: str) -> None:
    """Raise ValueError for what is no time zone of the IANA database, or would be one machine's own."""
    if name.lower() in ("local", "localtime") or name not in available_timezones():
        raise ValueError(f"expected a time zone such as UTC or Europe/Berlin, found {name!r}")

"""Cron expressions mean what Kubernetes takes them to mean, on this machine too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow import cron

START = datetime(2026, 1, 1, tzinfo=UTC)


def parts(low: int, high: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    numbers = st.integers(low, high)
    # croniter takes 0-0, and a range of all, for a star.
    ends = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted).filter(lambda pair: pair != [low, high])
    ranges = ends.map(lambda pair: f"{pair[0]}-{pair[1]}")
    steps = st.tuples(st.sampled_from(["*", f"{low}-{high}"]), st.integers(2, 5)).map(
        lambda pair: f"{pair[0]}/{pair[1]}"
    )
    lists = st.lists(numbers.map(str), min_size=1, max_size=3, unique=True).map(",".join)
    return st.one_of(st.just("*"), numbers.map(str), ranges, steps, lists, *([st.sampled_from(names)] if names else []))


#: Not day 31 alone with month 2: that never fires and is refused.
EXPRESSIONS = st.tuples(
    parts(0, 59), parts(0, 23), parts(1, 28), parts(1, 12, cron.MONTHS), parts(0, 6, cron.WEEKDAYS)
).map(" ".join)


@given(EXPRESSIONS)
@settings(max_examples=150, deadline=None)
def test_fires_when_an_independent_reader_says_so(text):
    day, weekday = text.split()[2], text.split()[4]
    if day.startswith("*/") or weekday.startswith("*/"):
        return  # Kubernetes counts */2 as restricted, croniter does not; see the next test
    until = START + timedelta(days=800)
    expected = islice(croniter(text, START, ret_type=datetime), 5)
    assert list(islice(cron.fires(text, "UTC", START, until), 5)) == [moment for moment in expected if moment <= until]


@pytest.mark.parametrize(
    ("text", "first"),
    {
        "sunday is 0": ("0 0 * * 0", datetime(2026, 1, 4, tzinfo=UTC)),
        "sunday by name": ("0 0 * * SUN", datetime(2026, 1, 4, tzinfo=UTC)),
        "a week's range from sunday": ("0 0 * * sun-mon", datetime(2026, 1, 4, tzinfo=UTC)),
        "day or weekday": ("0 0 13 * fri", datetime(2026, 1, 2, tzinfo=UTC)),
        "a step is a restriction": ("0 0 */10 * fri", datetime(2026, 1, 2, tzinfo=UTC)),
        "from a number on": ("50/5 0 * * *", datetime(2026, 1, 1, 0, 50, tzinfo=UTC)),
        "leap day": ("0 0 29 2 *", datetime(2028, 2, 29, tzinfo=UTC)),
    }.values(),
)
def test_reads_as_kubernetes_reads(text, first):
    assert next(cron.fires(text, "UTC", START, START + timedelta(days=1500))) == first


NIGHTS = {
    "left out": ("30 2 * * *", "Europe/Berlin", "2026-03-28", ["28T01:30", "30T00:30"]),
    "left out, where either day counts": ("30 2 1 * sun,mon", "Europe/Berlin", "2026-03-28", ["30T00:30"]),
    "twice": ("30 2 * * *", "Europe/Berlin", "2026-10-24", ["24T00:30", "25T00:30", "25T01:30", "26T01:30"]),
    "twice, in order": ("0,30 2 * * sun", "Europe/Berlin", "2026-10-24",
                        ["25T00:00", "25T00:30", "25T01:00", "25T01:30"]),
    "before": ("30 1 * * *", "Europe/Berlin", "2026-10-24", ["24T23:30", "26T00:30"]),
    "each hour": ("0 2-3 * * *", "America/New_York", "2026-03-08", ["08T07:00", "09T06:00", "09T07:00"]),
    "half an hour": ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04", ["04T14:45", "04T15:15", "05T15:15"]),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("text", "zone", "since", "expected"), NIGHTS.values(), ids=NIGHTS)
def test_an_hour_that_clocks_leave_out_does_not_fire_and_one_that_comes_twice_does_twice(text, zone, since, expected):
    """As robfig/cron's own tests have it: "2am nightly job (skipped)", "1am nightly job (runs twice)"."""
    start = datetime.fromisoformat(f"{since}T00:00+00:00")
    found = list(cron.fires(text, zone, start, start + timedelta(hours=50)))
    assert [f"{moment:%dT%H:%M}" for moment in found] == expected


@given(EXPRESSIONS, st.sampled_from(["Europe/Berlin", "America/Santiago", "Africa/Casablanca", "Asia/Kathmandu"]))
@settings(max_examples=50, deadline=None)
def test_fires_whenever_the_zone_s_clocks_show_a_time_that_is_named(text, zone):
    found = cron.parse(text)
    start = datetime(2026, 10, 24, 12, tzinfo=UTC)
    minutes = [start + timedelta(minutes=number) for number in range(1, 24 * 60 + 1)]
    shown = [(moment, moment.astimezone(ZoneInfo(zone))) for moment in minutes]
    expected = [
        moment for moment, local in shown
        if found.names(local.date()) and local.hour in found.hours and local.minute in found.minutes
    ]  # fmt: skip
    assert list(cron.fires(text, zone, start, minutes[-1])) == expected


def test_the_next_one_is_told_by_its_zone_s_clocks():
    found = cron.next_fire("30 2 29 2 *", "Europe/Berlin", datetime(2028, 3, 1, tzinfo=UTC))
    assert found is not None and found.isoformat() == "2032-02-29T02:30:00+01:00"


def test_the_start_is_left_out_and_the_end_is_not():
    minute = START + timedelta(minutes=1)
    assert list(cron.fires("* * * * *", "UTC", START, minute)) == [minute]


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "four fields": ("* * * *", "five fields"),
        "a descriptor": ("@daily", "five fields"),
        "a zone inside": ("TZ=UTC 0 2 * * *", "five fields"),
        "minute 60": ("60 * * * *", "minute: expected 0 to 59"),
        "weekday 7": ("0 0 * * 7", "weekday: expected 0 to 6"),
        "month by a wrong name": ("0 0 1 juno *", "month: expected 1 to 12"),
        "backwards": ("30-10 * * * *", "low to high"),
        "step 0": ("*/0 * * * *", "step of at least 1"),
        "a step in other digits": ("*/٣ * * * *", "minute"),
        "an empty part": ("1,,2 * * * *", "minute"),
        "a negative": ("-1 * * * *", "minute"),
        "february 30": ("0 0 30 2 *", "never fires"),
        "april 31, june 31": ("0 0 31 4,6 *", "never fires"),
    }.values(),
)
def test_what_cannot_be_meant_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        cron.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        cron.parse(text)
    except ValueError:
        pass


@pytest.mark.parametrize("name", ["Local", "localtime", "Mars/Olympus", "", "+02:00", "../../etc/passwd"])
def test_only_zones_of_the_database(name):
    with pytest.raises(ValueError, match="time zone"):
        cron.check_zone(name)

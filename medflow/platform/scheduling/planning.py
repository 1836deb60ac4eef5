"""What is to be done about schedules, and what went wrong with them, from what is known of them alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

from medflow import cron
from medflow.platform.scheduling.records import (
    Action,
    Change,
    Fault,
    Fire,
    Frozen,
    Key,
    Registered,
    Standing,
    Timing,
    Wanted,
)

#: A fire may come this much late before it is told as missed.
GRACE = timedelta(minutes=2)
#: Fires that never reached ZenML are told for so long, whatever came after them.
RECENT = timedelta(days=7)
#: Missed fires are counted up to here.
MANY = 1000


def changes(
    wanted: Sequence[Wanted], standing: Sequence[Standing], registered: Sequence[Registered]
) -> tuple[Change, ...]:
    """One a schedule: those of the file in its order, then those that it no longer names."""
    stands = {item.name: item for item in standing}
    known = {item.name: item for item in registered}
    found = [_change(item, stands.get(item.name), known.get(item.name)) for item in wanted]
    gone = sorted({*stands, *known} - {item.name for item in wanted})
    return (*found, *(Change(name=name, action=Action.DELETE, why=("the file does not name it",)) for name in gone))


def _change(wanted: Wanted, stands: Standing | None, known: Registered | None) -> Change:
    if stands is None and known is None:
        return Change(name=wanted.name, action=Action.CREATE, why=("it is not there yet",))
    if stands is None:
        return Change(name=wanted.name, action=Action.RECREATE, why=("its CronJob is not in the cluster",))
    if known is None or known.id != stands.schedule_id:
        return Change(name=wanted.name, action=Action.RECREATE, why=("ZenML does not know its schedule",))
    if why := tuple(_frozen(wanted.frozen, stands)):
        return Change(name=wanted.name, action=Action.RECREATE, why=why)
    why = (*_timing(wanted.timing, stands.timing), *_at_zenml(wanted.timing, known))
    return Change(name=wanted.name, action=Action.UPDATE if why else Action.NOTHING, why=why)


def _frozen(wanted: Frozen, stands: Standing) -> Iterator[str]:
    if wanted.image != stands.frozen.image:
        yield f"the image is {wanted.image}, not {stands.frozen.image}"
    if wanted.code != stands.frozen.code:
        yield "the code of its steps has changed"
    if wanted.settings != stands.frozen.settings:
        yield "its settings, its place or its stack have changed"
    if stands.key is not Key.VALID:
        yield f"the API key that it was made with is {stands.key.value}"
    if stands.edited:
        yield "the pods of its CronJob were edited by hand"


#: Field of a timing → how a user calls it.
WORDS = {
    "cron": "cron",
    "time_zone": "time zone",
    "paused": "paused",
    "overlap": "concurrencyPolicy",
    "start_within": "start_within",
    "succeeded_kept": "successful jobs kept",
    "failed_kept": "failed jobs kept",
}


def _timing(wanted: Timing, found: Timing) -> Iterator[str]:
    for field, words in WORDS.items():
        expected, actual = getattr(wanted, field), getattr(found, field)
        if expected != actual:
            yield f"{words}: {_told(expected)}, the cluster has {_told(actual)}"


def _at_zenml(wanted: Timing, known: Registered) -> Iterator[str]:
    if wanted.cron != known.cron:
        yield f"cron: {_told(wanted.cron)}, ZenML has {_told(known.cron)}"
    if wanted.paused == known.active:
        yield f"paused: {_told(wanted.paused)}, ZenML has {_told(not known.active)}"


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


# -- what went wrong ------------------------------------------------------------------------------


def faults(standing: Sequence[Standing], now: datetime) -> tuple[Fault, ...]:
    """Fires that were missed, that never reached ZenML, whose run failed, and the cluster's warnings.

    ``now`` knows its zone.
    """
    return tuple(
        Fault(name=item.name, text=text)
        for item in standing
        for text in (*_missed(item, now), *_unreached(item, now), *_last_run(item), *item.warnings)
    )


def _missed(stands: Standing, now: datetime) -> Iterator[str]:
    if stands.timing.paused:
        return
    after = max(filter(None, (stands.since, stands.last_fire)))
    try:
        due = cron.fires(stands.timing.cron, stands.timing.time_zone or "UTC", after, now - GRACE)
        late = list(islice(due, MANY))
    except (ValueError, KeyError) as problem:  # edited by hand; the change says so
        yield f"its cron cannot be read: {problem}"
        return
    busy = [moment for moment in late if any(_went_on(fire, moment) for fire in stands.fires)]
    if busy:
        yield f"{_times(busy)} left out because the run before went on: {_span(busy)}"
    missed = [moment for moment in late if moment not in busy]
    if missed:
        yield f"{_times(missed)} missed: {_span(missed)}"


def _went_on(fire: Fire, moment: datetime) -> bool:
    return fire.at <= moment and (fire.ended is None or moment <= fire.ended)


def _times(moments: Sequence[datetime]) -> str:
    return "1 fire" if len(moments) == 1 else f"{len(moments)} fires" + (" or more" if len(moments) >= MANY else "")


def _span(moments: Sequence[datetime]) -> str:
    return _at(moments[0]) if len(moments) == 1 else f"{_at(moments[0])} to {_at(moments[-1])}"


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _unreached(stands: Standing, now: datetime) -> Iterator[str]:
    for fire in stands.fires:
        if fire.run_id is None and (fire.ended or fire.reason) and now - fire.at < RECENT:
            state = "never reached ZenML" if fire.ended else "has not reached ZenML yet"
            yield f"the fire of {_at(fire.at)} {state} (job {fire.job}): {fire.reason or 'it did not tell why'}"


def _last_run(stands: Standing) -> Iterator[str]:
    """Of the newest fire alone: what failed before has been overtaken."""
    for fire in stands.fires[-1:]:
        if fire.run_id is not None and fire.run_status == "failed":
            yield f"the run of {_at(fire.at)} failed ({fire.run_id}): {fire.reason or 'no reason was told'}"

"""What is to be done about schedules, and what went wrong with them, from what is known of them alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice, pairwise

from medflow import cron
from medflow.platform.scheduling.records import (
    FAILED_KEPT,
    GOING_ON,
    SUCCEEDED_KEPT,
    Action,
    Change,
    Fault,
    Frozen,
    Key,
    Registered,
    Standing,
    Timing,
    Wanted,
)

#: A fire may come this much late before it is told as missed.
GRACE = timedelta(minutes=2)
#: Fires that were missed or never reached ZenML are told for so long, whatever came after them.
RECENT = timedelta(days=7)
#: Missed fires are counted up to here.
MANY = 1000
NEVER = datetime.max.replace(tzinfo=UTC)


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
    """Fires that were missed, that never reached ZenML, whose run broke off, failed or gave way, and warnings.

    The warnings are the cluster's. ``now`` knows its zone.
    """
    return tuple(
        Fault(name=item.name, text=text)
        for item in standing
        for text in (
            *_missed(item, now),
            *_unreached(item, now),
            *_broken_off(item, now),
            *_last_run(item),
            *item.warnings,
        )
    )


def _missed(stands: Standing, now: datetime) -> Iterator[str]:
    if stands.timing.paused:
        return
    try:
        late = list(islice(_late(stands, now), MANY))
    except (ValueError, KeyError) as problem:  # edited by hand; the change says so
        yield f"its cron cannot be read: {problem}"
        return
    busy = [moment for moment in late if _is_busy(stands, moment)]
    if busy:
        yield f"{times(busy)} left out because the run before went on: {span(busy)}"
    missed = [moment for moment in late if moment not in busy]
    if missed:
        yield f"{times(missed)} missed: {span(missed)}"


def _late(stands: Standing, now: datetime) -> Iterator[datetime]:
    """The due times of which nothing came; those that a run left no room for only where nothing has come since."""
    came = sorted(_came(stands))
    due = cron.fires(stands.timing.cron, stands.timing.time_zone or "UTC", _known_from(stands, now), now)
    for moment, following in pairwise(chain(due, (NEVER,))):
        if moment > now - GRACE:
            return
        # The cluster starts late what was due last: what came before the following one is of this one.
        first = bisect_left(came, moment)
        if first < len(came) and came[first] < following:
            continue
        if not _is_busy(stands, moment) or first == len(came):
            yield moment


def _came(stands: Standing) -> Iterator[datetime]:
    if stands.last_fire is not None:
        yield stands.last_fire
    yield from (fire.at for fire in stands.fires)
    yield from (run.at for run in stands.runs)


def _known_from(stands: Standing, now: datetime) -> datetime:
    """From here on whatever came is known.

    Of jobs the cluster keeps a few. Of those that it has forgotten ZenML has the runs, and none of what failed before
    it became one.
    """
    failed = [fire.at for fire in stands.fires if fire.failed]
    succeeded = [fire.at for fire in stands.fires if fire.ended and not fire.failed]
    whole = len(failed) < FAILED_KEPT and len(succeeded) < SUCCEEDED_KEPT
    if whole and (stands.last_fire is None or stands.last_fire in {fire.at for fire in stands.fires}):
        known = stands.since
    else:
        known = min(failed) if len(failed) >= FAILED_KEPT else min(_came(stands))
    return max(stands.since, min(max(known, now - RECENT), stands.last_fire or stands.since))


def _is_busy(stands: Standing, moment: datetime) -> bool:
    """Whether a run left no room for another one."""
    if any(fire.at <= moment and (fire.ended is None or moment <= fire.ended) for fire in stands.fires):
        return True
    # A job ends a little after its run. A run that has no end and no job has none to wait for.
    return any(run.ended is not None and run.at <= moment <= run.ended + GRACE for run in stands.runs)


def times(moments: Sequence[datetime]) -> str:
    return "1 fire" if len(moments) == 1 else f"{len(moments)} fires" + (" or more" if len(moments) >= MANY else "")


def span(moments: Sequence[datetime]) -> str:
    return _at(moments[0]) if len(moments) == 1 else f"{_at(moments[0])} to {_at(moments[-1])}"


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _unreached(stands: Standing, now: datetime) -> Iterator[str]:
    for fire in stands.fires:
        if fire.run_id is None and (fire.ended or fire.reason) and now - fire.at < RECENT:
            state = "never reached ZenML" if fire.ended else "has not reached ZenML yet"
            yield f"the fire of {_at(fire.at)} {state} (job {fire.job}): {fire.reason or 'it did not tell why'}"


def _broken_off(stands: Standing, now: datetime) -> Iterator[str]:
    for fire in stands.fires:
        if fire.broken_off and now - fire.at < RECENT:
            state = f"the run of {_at(fire.at)} broke off ({fire.run_id}), and is {fire.run_status} for ZenML"
            yield f"{state}: its orchestrator failed: {fire.reason or 'no reason was told'}"


def _last_run(stands: Standing) -> Iterator[str]:
    """Of the newest fire alone: what failed or gave way before has been overtaken."""
    for fire in stands.fires[-1:]:
        if fire.run_status == "stopped" and GOING_ON in (fire.reason or ""):
            yield f"the fire of {_at(fire.at)} was left out ({fire.run_id}): {fire.reason}"
        if fire.run_id is not None and fire.run_status == "failed":
            yield f"the run of {_at(fire.at)} failed ({fire.run_id}): {fire.reason or 'no reason was told'}"

"""What follows from what is known of schedules, and the schedules of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import given
from hypothesis import strategies as st

from medflow.config.sections.schedules import ScheduleConfig
from medflow.platform.scheduling import planning
from medflow.platform.scheduling.local import Runner
from medflow.platform.scheduling.past import KNOWN, Past
from medflow.platform.scheduling.records import (
    GOING_ON,
    GONE,
    Action,
    Fire,
    Frozen,
    Key,
    Ran,
    Registered,
    Standing,
    Timing,
    Wanted,
)

NOW = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)
SCHEDULE = ScheduleConfig(name="nightly", dataset="phantom", cron="0 * * * *")
FROZEN = Frozen(image="a", code="b", settings="c")


def wanted(name: str = "nightly", frozen: Frozen = FROZEN, **timing) -> Wanted:
    return Wanted(name=name, timing=Timing.of(SCHEDULE).model_copy(update=timing), frozen=frozen)


def standing(of: Wanted, **changes) -> Standing:
    found = Standing(
        name=of.name, job=f"medflow-{of.name}", timing=of.timing, frozen=of.frozen, edited=False, key=Key.VALID,
        schedule_id=f"id of {of.name}", snapshot_id="s", since=NOW - timedelta(minutes=5),
        last_fire=NOW.replace(minute=0, second=0),
    )  # fmt: skip
    return found.model_copy(update=changes)


def registered(of: Wanted, **changes) -> Registered:
    found = Registered(name=of.name, id=f"id of {of.name}", cron=of.timing.cron, active=not of.timing.paused)
    return found.model_copy(update=changes)


# -- what is to be done ---------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from("abcdef"), unique=True)
TIMINGS = st.builds(
    dict,
    cron=st.sampled_from(["0 * * * *", "5 2 * * sun"]),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin"]),
    paused=st.booleans(),
    start_within=st.integers(60, 90),
)
FROZENS = st.builds(Frozen, image=st.sampled_from("ab"), code=st.sampled_from("ab"), settings=st.sampled_from("ab"))


@st.composite
def states(draw) -> list[Wanted]:
    return [wanted(name, draw(FROZENS), **draw(TIMINGS)) for name in draw(NAMES)]


@given(states(), states(), states())
def test_doing_what_is_told_leaves_nothing_to_do(file, cluster, server):
    """Whatever stood before, in one of both places or in neither."""
    stands, known = {item.name: standing(item) for item in cluster}, {item.name: registered(item) for item in server}
    asked = {item.name: item for item in file}
    for change in planning.changes(file, tuple(stands.values()), tuple(known.values())):
        assert (change.action is Action.NOTHING) == (not change.why)
        name = change.name
        if change.action is Action.DELETE:
            assert name not in asked
            stands.pop(name, None)
            known.pop(name, None)
        elif change.action is Action.UPDATE:
            assert stands[name].frozen == asked[name].frozen
            stands[name] = stands[name].model_copy(update={"timing": asked[name].timing})
            known[name] = registered(asked[name])
        elif change.action is not Action.NOTHING:
            assert (change.action is Action.CREATE) == (name not in stands and name not in known)
            stands[name], known[name] = standing(asked[name]), registered(asked[name])
    again = planning.changes(file, tuple(stands.values()), tuple(known.values()))
    assert [change.action for change in again] == [Action.NOTHING] * len(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    {
        "image": ({"frozen": FROZEN.model_copy(update={"image": "old"})}, "the image is a, not old"),
        "code": ({"frozen": FROZEN.model_copy(update={"code": "old"})}, "the code of its steps has changed"),
        "settings": ({"frozen": FROZEN.model_copy(update={"settings": "old"})}, "settings"),
        "key gone": ({"key": Key.GONE}, "key that it was made with is gone from the server"),
        "key rotated": ({"key": Key.ROTATED}, "is rotated since"),
        "edited": ({"edited": True}, "edited by hand"),
        "another schedule": ({"schedule_id": "other"}, "ZenML does not know its schedule"),
    }.values(),
)
def test_what_a_cron_job_froze_makes_another_one(changes, words):
    (change,) = planning.changes([wanted()], [standing(wanted(), **changes)], [registered(wanted())])
    assert change.action is Action.RECREATE and words in "; ".join(change.why)


@pytest.mark.parametrize(
    ("timing", "words"),
    {
        "cron": ({"cron": "1 * * * *"}, "cron: 0 * * * *, the cluster has 1 * * * *"),
        "zone": ({"time_zone": None}, "time zone: UTC, the cluster has none"),
        "paused": ({"paused": True}, "paused: no, the cluster has yes"),
        "overlap": ({"overlap": "Allow"}, "concurrencyPolicy: Forbid, the cluster has Allow"),
        "late": ({"start_within": None}, "start_within: 3600, the cluster has none"),
    }.values(),
)
def test_time_and_pause_are_changed_in_place(timing, words):
    found = standing(wanted(), timing=wanted(**timing).timing)
    (change,) = planning.changes([wanted()], [found], [registered(wanted())])
    assert (change.action, change.why) == (Action.UPDATE, (words,))


def test_a_pause_at_the_server_alone_is_told():
    (change,) = planning.changes([wanted()], [standing(wanted())], [registered(wanted(), active=False)])
    assert (change.action, change.why) == (Action.UPDATE, ("paused: no, ZenML has yes",))


# -- what went wrong ------------------------------------------------------------------------------


def told(**changes) -> list[str]:
    return [fault.text for fault in planning.faults([standing(wanted(), **changes)], NOW)]


def test_nothing_is_told_of_what_fires_as_it_should():
    assert told() == []
    assert told(last_fire=NOW.replace(hour=11, minute=0)) == [], "a fire has two minutes to come"


def test_missed_fires_are_counted_from_the_last_one():
    made, late = NOW - timedelta(hours=5), NOW.replace(hour=8, minute=0, second=0)
    assert told(since=made, last_fire=late) == ["3 fires missed: 2026-05-04 09:00 UTC to 2026-05-04 11:00 UTC"]
    assert told(since=made, last_fire=None) == ["4 fires missed: 2026-05-04 08:00 UTC to 2026-05-04 11:00 UTC"]
    assert told(last_fire=late, since=NOW) == [], "it was resumed only now"
    assert told(since=made, last_fire=late, timing=wanted(paused=True).timing) == []


def test_fires_that_a_run_left_no_room_for_are_no_missed_ones():
    start = NOW.replace(hour=9, minute=0, second=0)
    long = Fire(job="a", at=start, ended=start + timedelta(minutes=90), run_id="r", run_status="completed")
    assert told(since=start, last_fire=start, fires=(long,)) == [
        "1 fire left out because the run before went on: 2026-05-04 10:00 UTC",
        "1 fire missed: 2026-05-04 11:00 UTC",
    ]


#: Two o'clock every night; Monday is the fourth of May.
NIGHTLY = wanted(cron="0 2 * * *")
THURSDAY = datetime(2026, 5, 7, 12, tzinfo=UTC)


def night(day: int, **changes) -> Fire:
    at = datetime(2026, 5, day, 2, tzinfo=UTC) if day > 0 else datetime(2026, 4, 30 + day, 2, tzinfo=UTC)
    found = Fire(job=f"j{day}", at=at, ended=at + timedelta(hours=1), run_id="r", run_status="completed")
    return found.model_copy(update=changes)


def gaps(*fires: Fire, runs: tuple[Ran, ...] = (), now: datetime = THURSDAY, **changes) -> list[str]:
    last = fires[-1].at if fires else None
    given = {"since": datetime(2026, 4, 1, tzinfo=UTC), "fires": fires, "runs": runs, "last_fire": last, **changes}
    found = planning.faults([standing(NIGHTLY, **given)], now)
    return [fault.text for fault in found if "missed" in fault.text or "left out" in fault.text]


def ran(fire: Fire) -> Ran:
    return Ran(at=fire.at + timedelta(minutes=3), ended=fire.ended)


MISSED = ["3 fires missed: 2026-05-04 02:00 UTC to 2026-05-06 02:00 UTC"]


def test_fires_that_were_missed_are_told_after_the_next_one_too():
    """The controller was away from Monday to Wednesday."""
    before, after = night(3), night(7)
    assert gaps(before, after, since=night(2).at) == MISSED
    assert gaps(after, since=night(3).at) == MISSED, "before the first one"
    assert gaps(night(2), before, after) == MISSED, "between those that are kept"
    assert gaps(before, after, since=night(2).at, now=THURSDAY + timedelta(days=3), last_fire=night(10).at) == [
        MISSED[0].replace("3 fires", "5 fires").replace("05-06", "05-09")
    ], "and of the last one the job is gone"
    assert gaps(*(night(day) for day in range(3, 8))) == []


def test_a_gap_is_found_among_runs_whose_jobs_are_gone():
    kept = [night(day) for day in (8, 9, 10)]
    runs = tuple(map(ran, (night(2), night(3), night(7), *kept)))
    sunday = THURSDAY + timedelta(days=3)
    assert gaps(*kept, runs=runs, now=sunday) == MISSED
    assert gaps(*kept, runs=(*runs, *(ran(night(day)) for day in (4, 5, 6))), now=sunday) == []
    assert gaps(*kept, now=sunday) == [], "nobody knows what came before them"
    assert gaps(*kept, runs=runs, now=sunday + timedelta(days=4), last_fire=night(14).at) == [
        "3 fires missed: 2026-05-11 02:00 UTC to 2026-05-13 02:00 UTC"
    ], "told for a week"


def test_of_fires_that_failed_before_they_were_runs_only_those_that_are_kept_are_known():
    lost = [night(day, run_id=None, failed=True) for day in (3, 4, 5, 6, 7)]
    assert gaps(*lost, runs=(ran(night(1)),)) == [], "the job of the second failed, or none was made"
    assert gaps(*lost[1:], runs=(ran(night(1)), ran(night(2)))) == ["1 fire missed: 2026-05-03 02:00 UTC"]
    assert gaps(*lost[:3], *lost[4:], night(8, failed=True), now=THURSDAY + timedelta(days=1)) == [
        "1 fire missed: 2026-05-06 02:00 UTC"
    ]


def test_what_a_run_left_no_room_for_is_told_until_the_next_fire_and_never_as_missed():
    long = night(3, ended=night(6).at + timedelta(hours=1))
    told_now = ["3 fires left out because the run before went on: 2026-05-04 02:00 UTC to 2026-05-06 02:00 UTC"]
    assert gaps(long, since=night(2).at, now=night(6).at + timedelta(hours=3)) == told_now
    assert gaps(long, night(7), since=night(2).at) == []
    kept = (night(7), night(8), night(9))
    assert gaps(*kept, runs=(ran(long), *map(ran, kept)), now=kept[-1].at + timedelta(hours=5)) == []


@given(st.sets(st.integers(24, 30), min_size=1), st.integers(0, 7), st.integers(0, 120))
def test_what_is_told_is_what_did_not_come(days, forgotten, late):
    """Whichever nights of a week fired, however many of their jobs are gone, and whenever their runs began."""
    came = [night(day) for day in sorted(days)]
    kept = came[forgotten:]
    runs = tuple(Ran(at=fire.at + timedelta(minutes=late), ended=fire.ended) for fire in came)
    made, now = night(24).at - timedelta(minutes=1), datetime(2026, 5, 30, 12, tzinfo=UTC)
    first = min(days) if len(kept) >= 3 or not kept else 24
    missed = [day for day in range(first, 31) if day not in days]
    found = gaps(*kept, runs=runs, now=now, last_fire=came[-1].at, since=made)
    assert [text.split()[0] for text in found] == [str(len(missed))] * bool(missed)


def test_a_fire_that_never_reached_the_server_is_told_with_its_reason():
    at = NOW.replace(minute=0, second=0)
    lost = Fire(job="medflow-1", at=at, ended=NOW, reason="exit code 1; its pod said: CredentialsNotValid")
    (text,) = told(fires=(lost,))
    assert "never reached ZenML (job medflow-1)" in text and "CredentialsNotValid" in text
    assert told(fires=(lost.model_copy(update={"at": at - timedelta(days=8)}),)) == [], "a week ago"
    waiting = lost.model_copy(update={"ended": None, "reason": "unschedulable"})
    assert "has not reached ZenML yet" in told(fires=(waiting,))[0]
    assert told(fires=(waiting.model_copy(update={"reason": None}),)) == [], "it has just begun"


def test_of_runs_only_the_last_one_s_failure_is_told():
    at = NOW.replace(minute=0, second=0)
    failed = Fire(job="a", at=at - timedelta(hours=1), ended=at, run_id="r1", run_status="failed", reason="no room")
    assert "failed (r1): no room" in told(fires=(failed,))[0]
    assert told(fires=(failed, failed.model_copy(update={"run_id": "r2", "run_status": "stopped"}))) == []


def test_a_run_whose_orchestrator_failed_under_it_is_told_until_somebody_closes_it():
    at = NOW.replace(minute=0, second=0)
    dead = Fire(
        job="a", at=at - timedelta(hours=1), ended=at, run_id="r1", run_status="running", failed=True,
        reason="OOMKilled (exit code 137)",
    )  # fmt: skip
    after = Fire(job="b", at=at, run_id="r2", run_status="running")
    words = (
        "the run of 2026-05-04 11:00 UTC broke off (r1), and is running for ZenML: its orchestrator failed: "
        "OOMKilled (exit code 137)"
    )
    assert told(fires=(dead,)) == told(fires=(dead, after)) == [words]
    assert told(fires=(dead.model_copy(update={"at": at - timedelta(days=8)}),)) == [], "a week ago"
    for status in ("completed", "stopped", GONE):
        assert told(fires=(dead.model_copy(update={"run_status": status}),)) == []
    assert told(fires=(dead.model_copy(update={"failed": False, "ended": None}),)) == [], "it goes on"


def test_that_the_newest_fire_gave_way_to_another_run_is_told():
    at = NOW.replace(minute=0, second=0)
    gave_way = Fire(
        job="a", at=at, ended=NOW, run_id="r1", run_status="stopped",
        reason=f"a run of phantom {GOING_ON}: phantom-by-hand",
    )  # fmt: skip
    words = "the fire of 2026-05-04 12:00 UTC was left out (r1): a run of phantom is going on already: phantom-by-hand"
    assert told(fires=(gave_way,)) == [words]
    older = gave_way.model_copy(update={"at": at - timedelta(hours=1)})
    assert told(fires=(older, gave_way.model_copy(update={"run_status": "completed", "reason": None}))) == []
    for reason in ("stopped by its user", "data, code and settings are those of phantom-1, the last completed run"):
        assert told(fires=(gave_way.model_copy(update={"reason": reason}),)) == [], "as somebody wanted"


# -- this machine ---------------------------------------------------------------------------------


def lines_of(trigger, code: str, enough: Callable[[list[str]], bool], **changes) -> list[str]:
    """What a runner says until it is enough, whose schedule's run is a piece of Python."""
    said: list[str] = []
    schedule = SCHEDULE.model_copy(update=changes)
    runner = Runner([schedule], {schedule.name: (sys.executable, "-c", code)}, said.append, lambda _: trigger)
    interrupted(runner, lambda: enough(said))
    assert enough(said), said
    return said


def interrupted(runner: Runner, enough: Callable[[], bool]) -> None:
    """Run until it is enough, or a minute has passed."""
    before = signal.signal(signal.SIGUSR1, raise_interrupt)
    threading.Thread(target=interrupt, args=(enough,), daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run()
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt(enough: Callable[[], bool]) -> None:
    stop = time.monotonic() + 60
    while not enough() and time.monotonic() < stop:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGUSR1)


def raise_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


EVERY_SECOND = IntervalTrigger(seconds=1)


def test_it_fires_again_and_again_and_tells_failures():
    said = lines_of(EVERY_SECOND, "", lambda said: sum("done after" in line for line in said) == 2)
    assert said.count("nightly: starts") >= 2
    lines_of(EVERY_SECOND, "exit(7)", lambda said: any("FAILED with exit code 7" in line for line in said))


def test_no_run_starts_while_the_one_before_goes_on_and_the_end_stops_it(tmp_path: Path):
    ready, left = tmp_path / "ready", tmp_path / "left"
    code = f"import signal, time; signal.signal(15, lambda *_: (open({str(left)!r}, 'w').close(), exit(1)))\n"
    words = "nightly: left out: its run before goes on"
    code += f"open({str(ready)!r}, 'w').close(); time.sleep(600)"
    said = lines_of(EVERY_SECOND, code, lambda said: words in said and ready.exists())
    assert said.count("nightly: starts") == 1
    assert "nightly: is stopped" in said and left.exists()


@pytest.mark.timeout(120)
def test_what_was_due_while_another_ran_does_not_start_when_all_is_stopped(tmp_path: Path):
    ready = tmp_path / "ready"
    code = f"import time; open({str(ready)!r}, 'a').close(); time.sleep(600)"
    both = [SCHEDULE.model_copy(update={"name": name}) for name in ("first", "second")]
    commands = {schedule.name: (sys.executable, "-c", code) for schedule in both}
    said: list[str] = []
    now = DateTrigger(datetime.now(UTC) + timedelta(seconds=1))
    interrupted(Runner(both, commands, said.append, lambda _: now), lambda: ready.exists() and "first: starts" in said)
    assert [line.partition(" after")[0] for line in said if "next at" not in line] == [
        "first: starts", "first: is stopped", "first: FAILED with exit code -15",
        "second: left out: the schedules are stopped",
    ]  # fmt: skip


@pytest.mark.timeout(50)
def test_who_asks_twice_waits_no_longer_for_a_run_that_does_not_end(tmp_path: Path):
    ready = tmp_path / "ready"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w').close(); time.sleep(70)"
    said: list[str] = []
    runner = Runner([SCHEDULE], {SCHEDULE.name: (sys.executable, "-c", code)}, said.append, lambda _: EVERY_SECOND)
    threading.Thread(target=interrupt, args=(lambda: "nightly: is stopped" in said,), daemon=True).start()
    interrupted(runner, ready.exists)
    assert any("FAILED with exit code -9" in line for line in said), said


def test_a_fire_that_is_too_late_is_told():
    late = DateTrigger(datetime.now(UTC) - timedelta(seconds=30))
    words = "nightly: missed: it could not start in time"
    assert "nightly: starts" not in lines_of(late, "", lambda said: words in said, start_within=2)


def begun(path: Path, now: datetime, **changes) -> tuple[Past, list[str]]:
    said: list[str] = []
    past = Past(path, said.append)
    past.begin(SCHEDULE.model_copy(update=changes), now)
    return past, said


def test_what_was_due_while_nothing_ran_is_told_once_at_the_next_start(tmp_path: Path):
    path = tmp_path / "schedules" / "a.json"
    past, said = begun(path, NOW)
    past.due("nightly", NOW + timedelta(minutes=59, seconds=30))
    assert said == []
    words = "nightly: 3 fires missed while no `medflow schedule run` ran: 2026-05-04 14:00 UTC to 2026-05-04 16:00 UTC"
    assert begun(path, NOW + timedelta(hours=4))[1] == [words]
    assert begun(path, NOW + timedelta(hours=4, minutes=1))[1] == []
    assert begun(path, NOW + timedelta(days=1), cron="1 * * * *")[1] == [], "it had other times then"
    begun(path, NOW, paused=True)
    assert begun(path, NOW + timedelta(days=2))[1] == [], "nothing was due"
    path.write_text("[")
    assert begun(path, NOW)[1] == [f"warning: what was missed so far is not known: {path} cannot be read"]
    assert begun(path, NOW)[1] == []


def test_what_came_together_with_another_fire_is_told(tmp_path: Path):
    past, said = begun(tmp_path / "a.json", NOW)
    past.due("nightly", NOW.replace(hour=15, second=0))
    past.due("nightly", NOW.replace(hour=16, second=0))
    assert said == [
        "nightly: 2 fires missed while this process was held up: 2026-05-04 13:00 UTC to 2026-05-04 14:00 UTC"
    ]


def test_where_it_cannot_be_kept_it_fires_all_the_same(tmp_path: Path):
    (tmp_path / "file").touch()
    _, said = begun(tmp_path / "file" / "a.json", NOW)
    assert said[-1].startswith("warning: what is missed from here on cannot be told later: ")


def test_what_fires_is_kept_as_due(tmp_path: Path):
    path, said = tmp_path / "a.json", []
    runner = Runner(
        [SCHEDULE], {SCHEDULE.name: (sys.executable, "-c", "")}, said.append, lambda _: EVERY_SECOND,
        past=Past(path, said.append),
    )  # fmt: skip
    began = KNOWN.validate_json(path.read_bytes())["nightly"].until
    interrupted(runner, lambda: any("done after" in line for line in said))
    assert "nightly: starts" in said and KNOWN.validate_json(path.read_bytes())["nightly"].until > began


def test_what_is_paused_never_fires():
    said: list[str] = []
    Runner([SCHEDULE.model_copy(update={"paused": True})], {}, said.append)
    assert said == ["nightly: paused"]


FILE = """
schedules:
  - name: every-minute
    dataset: phantom
    cron: "* * * * *"
    only_when_the_data_changed: true
    settings: {source.images: 72, models.0.size: 32, models.0.channels: [8, 16], models.0.label_hidden: [16],
               models.0.label_dropout: [0.1, 0.1], train.epochs: 1, evaluate.resamples: 100, promote.resamples: 100,
               promote.floors: [], prune.enabled: false, quantize.enabled: false}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_fires_every_minute_and_leaves_out_what_is_unchanged(tmp_path: Path):
    (tmp_path / "schedules.yaml").write_text(FILE)
    environment = {**os.environ, "MEDFLOW_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "medflow.cli", "schedule", "run"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines = until(process, "every-minute is left out: data, code and settings are those of phantom-", 600)
        process.terminate()
        assert process.wait(60) == 130
    assert any(line.rstrip().endswith("next at " + line.rpartition("next at ")[2].rstrip()) for line in lines)
    assert sum("every-minute: done after" in line for line in lines) >= 1
    assert not any("FAILED" in line for line in lines)


def until(process: subprocess.Popen[str], words: str, seconds: float) -> list[str]:
    lines: list[str] = []
    stop = time.monotonic() + seconds
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
        assert time.monotonic() < stop, "".join(lines)
    raise AssertionError("".join(lines))

"""Verbs about schedules: what a cluster should do by itself, whether it does, and the same on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medflow.commands import output
from medflow.commands.place import LOCAL, go, stack_name
from medflow.commands.settings import read_settings
from medflow.commands.verb import JsonOption, Verb
from medflow.errors import ConfigError, PlatformError
from medflow.progress import say

if TYPE_CHECKING:
    from medflow.config.sections import RunConfig
    from medflow.config.sections.schedules import ScheduleConfig, SchedulesConfig
    from medflow.platform.kubernetes.scheduling.applying import Scheduler
    from medflow.platform.scheduling.records import Change, Fault

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Let runs start by themselves.")
File = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE", help="A YAML of schedules; schedules.yaml of this folder, or the shipped one, where left out."
    ),
]


@app.command("plan", cls=Verb)
def plan(file: File = None, as_json: JsonOption = False) -> None:
    """Tell what `apply` would do, and what went wrong.

    Compares the file with the schedules at the ZenML server and the CronJobs in the cluster: what is missing, was
    edited by hand, has old code, image or settings, or hangs on a key that is gone; fires that were missed, and fires
    that never reached ZenML. Changes nothing. Exit code 0 where nothing is to be done and nothing went wrong.

    \b
    Examples:
      medflow schedule plan
      medflow schedule plan mine.yaml --json | jq .faults
    """
    config = _read(file)
    scheduler = _scheduler(config)
    changes = scheduler.changes() if scheduler else ()
    faults = scheduler.faults() if scheduler else ()
    if as_json:
        told = {"changes": changes, "faults": faults}
        items = {key: [item.model_dump(mode="json") for item in found] for key, found in told.items()}
        output.emit_json({**items, "local": [schedule.name for schedule in _local(config)]})
    else:
        rows = [_row(config, schedule) for schedule in config.schedules]
        output.emit_table(("schedule", "on", "cron", "time zone", "next"), rows)
        for change in changes:
            if change.why:
                output.emit(f"{change.name}: {change.action.value}: {'; '.join(change.why)}")
        for fault in faults:
            output.emit(f"{fault.name}: {fault.text}")
    _refuse_amiss(changes, faults)


def _refuse_amiss(changes: Sequence[Change], faults: Sequence[Fault]) -> None:
    differing = [change.name for change in changes if change.why]
    if differing:
        raise PlatformError(f"not as the file says: {', '.join(differing)}", hint="`medflow schedule apply` changes it")
    if faults:
        names = ", ".join(dict.fromkeys(fault.name for fault in faults))
        raise PlatformError(f"went wrong: {names}", hint="what did is said above")


@app.command("apply", cls=Verb)
def apply(file: File = None, as_json: JsonOption = False) -> None:
    """Make a cluster do what the file says.

    Creates, changes, pauses and removes; makes anew what has other code, image, settings or credentials. What medflow
    made on this stack and the file does not name is removed. A second call changes nothing. A run that goes on is
    never cut off: its schedule fires no more, and waits for another call.

    \b
    Examples:
      medflow schedule apply
      medflow schedule apply mine.yaml --json | jq '.[].outcome'
    """
    config = _read(file)
    scheduler = _scheduler(config)
    done = scheduler.apply(say) if scheduler else ()
    if as_json:
        output.emit_json([item.model_dump(mode="json") for item in done])
    else:
        rows: list[tuple[str, str, str]] = [(item.name, item.outcome, "; ".join(item.why)) for item in done]
        rows += [(schedule.name, LOCAL, "fires as long as `medflow schedule run` runs") for schedule in _local(config)]
        output.emit_table(("schedule", "outcome", "why"), rows)
    waiting = [item.name for item in done if item.outcome == "waits"]
    if waiting:
        raise PlatformError(
            f"not changed yet, because a run goes on: {', '.join(waiting)}",
            hint="apply again when it has ended, or stop it: `medflow stack stop STACK RUN`",
        )


@app.command("run", cls=Verb)
def run(file: File = None) -> None:
    """Fire the schedules of this machine, in the foreground, until Ctrl-C or SIGTERM.

    Those that run `on: local`. One run at a time, none twice at a time; one that is still going on is stopped at the
    end, and what it has finished stays cached. What was due since it last ran is told at the start, and does not run.

    \b
    Examples:
      medflow schedule run
      nohup medflow schedule run mine.yaml 2>> schedule.log &
    """
    path = _find(file)
    schedules = _local(_read(file))
    for schedule in schedules:
        _settings(schedule)
    if not schedules:
        raise ConfigError(f"{path} has no schedule that runs on this machine", hint="write `on: local`")
    from medflow.home import home
    from medflow.platform.scheduling.local import Runner
    from medflow.platform.scheduling.past import Past
    from medflow.records import digest_of

    commands = {
        schedule.name: (sys.executable, "-m", "medflow.cli", "schedule", "fire", schedule.name, str(path))
        for schedule in schedules
    }
    # Another file may call its schedules the same.
    kept = home() / "schedules" / f"{digest_of(str(path.resolve()))[:12]}.json"
    Runner(schedules, commands, say, past=Past(kept, say)).run()


@app.command("fire", cls=Verb)
def fire(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A schedule of the file.")],
    file: File = None,
    as_json: JsonOption = False,
) -> None:
    """Run a schedule of this machine once, now.

    \b
    Examples:
      medflow schedule fire phantom-nightly
    """
    schedule = _named(_read(file), name)
    from medflow.commands.running import as_contract, tell_run

    settings = _settings(schedule)
    go(LOCAL)
    from medflow.platform.scheduling import firing
    from medflow.platform.scheduling.records import Entry

    outcome = firing.fire(Entry(schedule, settings), say)
    if isinstance(outcome, str):
        say(f"{name} is left out: {outcome}")
        if as_json:
            output.emit_json({"status": "left out", "reason": outcome})
    elif as_json:
        output.emit_json(as_contract(outcome))
    else:
        tell_run(outcome)


def _named(config: SchedulesConfig, name: str) -> ScheduleConfig:
    """A schedule of this machine. Raises ConfigError."""
    schedule = next((item for item in config.schedules if item.name == name), None)
    if schedule is None:
        known = ", ".join(item.name for item in config.schedules) or "none"
        raise ConfigError(f"no schedule is called {name!r}", hint=f"there is {known}")
    place = config.place_of(schedule)
    if place != LOCAL:
        raise ConfigError(
            f"{name} runs on {place}, expected one of this machine",
            hint=f"`medflow run {schedule.dataset} --on {place}` runs the same there now",
        )
    return schedule


def _find(file: str | None) -> Path:
    from medflow.config import schedules

    return schedules.find(file, Path.cwd())


def _read(file: str | None) -> SchedulesConfig:
    from medflow.config import schedules

    return schedules.read(_find(file))


def _local(config: SchedulesConfig) -> list[ScheduleConfig]:
    return [schedule for schedule in config.schedules if config.place_of(schedule) == LOCAL]


def _settings(schedule: ScheduleConfig) -> RunConfig:
    """Checked as those of `medflow run` are."""
    settings = [f"{key}={json.dumps(value)}" for key, value in schedule.settings.items()]
    try:
        return read_settings(schedule.dataset, settings, schedule.source).config
    except ConfigError as error:
        raise ConfigError(f"schedule {schedule.name}: {error.message}", hint=error.hint) from error


def _scheduler(config: SchedulesConfig) -> Scheduler | None:
    """The schedules of the file's cluster; None where it has none."""
    settings = {schedule.name: _settings(schedule) for schedule in config.schedules}
    # Each sets the same: a file is for one stack.
    places = {name: went for name in config.clusters if (went := go(name)) is not None}
    if not places:
        return None
    from medflow.platform.kubernetes.scheduling.applying import Scheduler
    from medflow.platform.scheduling.records import Entry

    place, stack = next(iter(places.values()))
    entries = [
        (Entry(schedule, settings[schedule.name]), places[config.place_of(schedule)][0])
        for schedule in config.schedules
        if config.place_of(schedule) != LOCAL
    ]
    return Scheduler(stack_name(place.stack), stack, entries)


def _row(config: SchedulesConfig, schedule: ScheduleConfig) -> tuple[str, ...]:
    from medflow import cron

    when = cron.next_fire(schedule.cron, schedule.time_zone, datetime.now(UTC))
    told = "paused" if schedule.paused else f"{when:%Y-%m-%d %H:%M}" if when else ""
    return schedule.name, config.place_of(schedule), schedule.cron, schedule.time_zone, told

"""Verbs about runs: the demonstration, settings, a run, and past runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medflow.commands import output
from medflow.commands.place import LOCAL, go
from medflow.commands.settings import check_run_name, read_settings
from medflow.commands.verb import At, JsonOption, Metadata, On, RunName, Settings, Source
from medflow.errors import PlatformError

if TYPE_CHECKING:
    from medflow.config.sections import RunConfig
    from medflow.config.sections.place import PlaceConfig
    from medflow.platform.outcomes import RunOutcome, RunSummary
    from medflow.records import Score

Name = Annotated[
    str, typer.Argument(metavar="DATASET", help="A name (NAME.yaml in this folder, or shipped), or the path of a YAML.")
]


def demo(as_json: JsonOption = False) -> None:
    """Take generated images through every step to a served model.

    Needs no network and no data. The second time nothing has changed, so every step that can be is cached.

    \b
    Examples:
      medflow demo
      medflow demo --json | jq .promotion
    """
    from medflow.platform import demo as platform
    from medflow.progress import say

    outcome = platform.demo(say)
    if as_json:
        output.emit_json(
            {**as_contract(outcome.run), "answer": json.loads(outcome.answer), "commands": list(outcome.commands)}
        )
        return
    tell_run(outcome.run)
    output.emit(f"\nserved, and answered one request:\n{outcome.answer}\n\nnext:")
    for command in outcome.commands:
        output.emit(f"  {command}")


def show(
    dataset: Name,
    settings: Settings = None,
    source: Source = None,
    metadata: Metadata = None,
    on: On = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Print the merged settings of a run as YAML.

    What is not a default is marked with where it was set.

    Later layers win: defaults, recipe, the dataset's YAML, command line. The output is a YAML that runs.
    With --on what each step gets there follows, as comments.

    \b
    Examples:
      medflow show covid_radiography
      medflow show covid_radiography train.epochs=2 model.size=128
      medflow show phantom --json | jq .config.train
      medflow show covid_radiography --on kubernetes
      medflow show phantom > mine.yaml; medflow run mine.yaml
    """
    from medflow.config.places import shown
    from medflow.config.showing import as_yaml, origins, place_lines

    reading = read_settings(dataset, settings or (), source, metadata)
    place, uses = _asked_of(on, reading.config)
    if as_json:
        told = {"file": shown(reading.file), "config": reading.tree, "origins": origins(reading)}
        steps = place.of_steps(uses) if place else {}
        asked = {name: step.model_dump(mode="json") for name, step in steps.items()}
        output.emit_json({**told, "steps": asked} if place else told)
        return
    output.emit(as_yaml(reading).rstrip())
    if place:
        output.emit("\n".join(place_lines(on, place, uses)))


def _asked_of(on: str, config: RunConfig) -> tuple[PlaceConfig | None, Mapping[str, str]]:
    """A place, and the steps that a run would have there, by use; nothing for this machine. No server is asked."""
    if on == LOCAL:
        return None, {}
    from medflow.config.destinations import read_place

    place = read_place(on)
    os.environ["MEDFLOW_ON"] = LOCAL
    from medflow.platform import runs as platform

    return place, platform.uses(config)


def run(
    dataset: Name,
    settings: Settings = None,
    source: Source = None,
    metadata: Metadata = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", help="GPUs, or CPU processes, to train on. Sets train.devices.")
    ] = None,
    name: RunName = None,
    on: On = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline of a dataset, from images to promotion.

    Ingest, validate, split, normalize, train, evaluate, prune, export, quantize, package, promote.
    What did not change since an earlier run is cached. A refused promotion is an outcome, not an error.
    Short forms: model.KEY=v for every model that has KEY, train.KEY=v for every stage of training.

    \b
    Examples:
      medflow run phantom
      medflow run covid_radiography --source ~/covid.zip train.epochs=2 model.pretrained=none
      medflow run chest_xray_pneumonia --source kaggle 'models=[{kind: timm, name: resnet18}]'
      medflow run ham10000 --source ~/ham.zip --metadata ~/HAM10000_metadata.csv
      medflow run covid_radiography --source ~/covid.zip --devices 2 --name two-gpus
      medflow run covid_radiography --source s3://images/covid ingest.shards=4
      medflow run phantom split.seed=1 --json | jq .metrics
      medflow run covid_radiography --source kaggle --on kubernetes
    """
    shared = () if devices is None else (f"train.devices={devices}",)
    reading = read_settings(dataset, [*shared, *(settings or ())], source, metadata)
    check_run_name(name, reading.config.dataset)
    place = go(on)
    from medflow.platform import runs as platform
    from medflow.progress import say

    outcome = platform.run(reading.config, place=place, say=say, name=name)
    if as_json:
        output.emit_json(as_contract(outcome))
    else:
        tell_run(outcome)
    if outcome.status != "completed":
        raise PlatformError(f"the run ended as {outcome.status}", hint=f"`medflow report {outcome.run_id}` tells more")


def runs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    on: On = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """List past runs, newest first.

    \b
    Examples:
      medflow runs
      medflow runs --limit 3 --json | jq -r '.[].run_id'
      medflow runs --on kubernetes
      medflow runs --on kubernetes --json | jq -r '.[0].pods'
    """
    go(on)
    from medflow.platform import runs as platform

    found = platform.recent(limit)
    if as_json:
        output.emit_json([item.model_dump(mode="json") for item in found])
        return
    if not found:
        output.emit("no runs yet; `medflow demo` makes the first")
        return
    output.emit_table(
        ("started (UTC)", "dataset", "status", "cached", "seconds", "model", "name", "run"),
        [_row(one) for one in found],
    )
    kept = next((one for one in found if one.pods), None)
    if kept:
        output.emit(f"\nwhat pods said: `medflow logs RUN`; files and events, of {kept.name}: {kept.pods}")


def _row(item: RunSummary) -> tuple[str, ...]:
    seconds = "" if item.seconds is None else f"{item.seconds:.0f}"
    done = f"{item.cached} of {item.steps}"
    return (
        f"{item.started:%Y-%m-%d %H:%M}",
        item.dataset,
        item.status,
        done,
        seconds,
        item.model,
        item.name,
        item.run_id,
    )


def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run of `medflow runs`, by id or name.")],
    step: Annotated[
        str | None,
        typer.Argument(metavar="STEP", help="As the run names it, such as train_resnet18, or orchestrator.",
                       show_default=False),
    ] = None,
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Print what the pods of a run in a cluster have said.

    Kept with the run, whatever became of the pods; of a run that goes on, what its pods have said so far.
    A step that was tried again has several pods, the oldest first.

    \b
    Examples:
      medflow logs 3f1c2a9e-6d54-4c11-9d0b-0a4f6e1f2b77 train_resnet18 --on kubernetes
      medflow logs larger-images --on kubernetes --json | jq -r '.[].step'
    """
    place = go(on)
    if place is None:
        raise PlatformError(
            "runs on this machine have no pods", hint="name the cluster, such as --on kubernetes; for runs here, "
            "`medflow dashboard` shows the log of each step",
        )  # fmt: skip
    from medflow.platform import reports
    from medflow.platform.kubernetes import cluster
    from medflow.platform.kubernetes import logs as reading

    context, namespace = place[1].cluster.context, place[1].cluster.namespace
    found = reading.of_run(reports.find_run(run), cluster.connect(context, namespace), step)
    if as_json:
        output.emit_json([{"step": log.step, "pod": log.pod, "created": log.created, "log": log.text} for log in found])
        return
    for log in found:
        output.emit(f"== {log.step}, pod {log.pod}, {log.created}\n{log.text.rstrip()}")


# -- telling a run --------------------------------------------------------------------------------


def as_contract(outcome: RunOutcome) -> dict[str, Any]:
    """What ``run --json`` promises; nothing else, so that nobody comes to rely on it."""
    promotion = outcome.promotion
    return {
        "run_id": outcome.run_id,
        "status": outcome.status,
        "steps": [{"name": step.name, "cached": step.cached, "seconds": step.seconds} for step in outcome.steps],
        "metrics": [score.model_dump(mode="json") for score in outcome.metrics],
        "model": outcome.model,
        "promotion": {"promoted": promotion.promoted, "reasons": list(promotion.reasons)} if promotion else None,
    }


def tell_run(outcome: RunOutcome) -> None:
    """Steps, headline metrics and promotion of a run, for a reader."""
    steps = [(step.name, "cached" if step.cached else f"{step.seconds:.1f} s", step.made) for step in outcome.steps]
    output.emit_table(("step", "time", "made"), steps)
    if outcome.metrics:
        output.emit()
        tell_scores(outcome.metrics)
    if outcome.promotion:
        output.emit(f"\n{'promoted' if outcome.promotion.promoted else 'not promoted'} ({outcome.promotion.stage}):")
        for reason in outcome.promotion.reasons:
            output.emit(f"  {reason}")
    output.emit(f"\n{outcome.model or 'no model'}  run {outcome.run_id}  {outcome.status} in {outcome.seconds:.0f} s")


def tell_scores(scores: tuple[Score, ...]) -> None:
    """The scores over a whole head, with their intervals."""
    from medflow.records import WHOLE_HEAD

    rows = [
        (score.head, _told(score), f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}", score.n)
        for score in scores
        if score.label in WHOLE_HEAD
    ]
    output.emit_table(("head", "metric", "value", "interval", "n"), rows)


def _told(score: Score) -> str:
    """The metric, with its averaging where another one of the same name stands beside it."""
    return f"{score.metric} (weighted)" if score.label == "weighted" else score.metric

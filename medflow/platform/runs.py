"""Start a run, and tell how runs went."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medflow import datasets
from medflow.config.heads import check_heads, of_learnt_heads
from medflow.config.sections import ImageTextModel, RunConfig, TimmModel
from medflow.config.sections.place import PlaceConfig
from medflow.config.sections.stack import StackConfig
from medflow.errors import PlatformError
from medflow.home import home
from medflow.platform import naming, stack, trackers
from medflow.platform.outcomes import RunOutcome, RunSummary, StepOutcome
from medflow.progress import say as say_line
from medflow.promote import check_floors, check_metrics, with_learnt_floors
from medflow.substitute import with_reachable_encoders

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StepRunResponse


def run(
    config: RunConfig,
    *,
    place: Place | None = None,
    say: Callable[[str], None] = say_line,
    name: str | None = None,
) -> RunOutcome:
    """Run the training pipeline to its end, here or at ``place``. Raises the error of the step that failed.

    ``name`` is what the run is called, with a number where another run has it; None is the dataset and the time.
    """
    started = time.monotonic()
    config = settled(config)
    from pipelines.training import training

    if place is None:
        response, order = execute(lambda: training(config), config.dataset, say, name)
    else:
        from medflow.platform.kubernetes import running, settings, upload

        settings.check_nodes(place[0], config)
        config = upload.in_reach_of_pods(config, place[0])
        response, order = running.execute(training(config), config.dataset, say, *place, name=name)
    return _outcome(response, config, order, time.monotonic() - started)


Place = tuple[PlaceConfig, StackConfig]
"""A cluster: what each step gets, and the stack."""


def uses(config: RunConfig) -> dict[str, str]:
    """The steps that a run would have, by the name of each use, in order: train_resnet18 is a use of train."""
    stack.use_local()
    from pipelines.training import training

    pipeline: Any = training(config)
    pipeline.prepare()
    return {use: str(invocation.step.name) for use, invocation in pipeline.invocations.items()}


def settled(config: RunConfig) -> RunConfig:
    """The settings as the steps get them. Raises ConfigError where they cannot be meant for the dataset's heads."""
    declared = datasets.get(config.dataset, config.declare).card.heads
    names = [head.name for head in declared]
    check_heads(config, names)
    check_floors(config.promote, declared)
    check_metrics(config)
    _refuse_unknown_models(config)
    learnt = [head for head in declared if config.heads is None or head.name in config.heads]
    config = config.model_copy(update={"promote": with_learnt_floors(config.promote, learnt)})
    return with_reachable_encoders(of_learnt_heads(config, names))


def execute(
    define: Callable[[], Any], dataset: str, say: Callable[[str], None], name: str | None = None
) -> tuple[PipelineRunResponse, list[str]]:
    """Run a pipeline of the dataset to its end: the run, and its steps in the order of the definition."""
    stack.use_local()
    from medflow.platform import caching, steplog

    with _only_one(dataset), caching.checked_hits(say), steplog.told(say):
        _close_killed(dataset)
        response, order = _start(define(), dataset, name)
    _remove_work(response)
    return response, order


def _refuse_unknown_models(config: RunConfig) -> None:
    """Now, and not after an ingest that may take hours."""
    names = [model.name for model in config.models if isinstance(model, TimmModel | ImageTextModel)]
    if names:
        from medflow.models.encoders import check_name  # only here: it loads torch and timm

        for name in names:
            check_name(name)


def recent(limit: int) -> tuple[RunSummary, ...]:
    """The last runs, newest first."""
    page = stack.client().list_pipeline_runs(sort_by="desc:created", size=limit, hydrate=True)
    return tuple(_summary(item) for item in page.items)


def _start(pipeline: Any, dataset: str, name: str | None) -> tuple[PipelineRunResponse, list[str]]:
    from zenml.enums import ExecutionMode

    # FAIL_FAST re-raises what the step raised, so that the user reads medflow's own words.
    configured = pipeline.with_options(run_name=naming.free(name), execution_mode=ExecutionMode.FAIL_FAST)
    try:
        response = configured()
    except Exception:
        _fail_tracking(dataset)
        raise
    run = stack.client().get_pipeline_run(response.id)
    if str(run.status.value) != "completed":
        raise PlatformError(
            f"run {run.name} ended as {run.status.value}",
            hint=f"`medflow runs` and `medflow report {run.name}` tell more",
        )
    return run, list(configured.invocations)


def _fail_tracking(dataset: str) -> None:
    """Close the MLflow run of a failed pipeline run; nothing else would."""
    try:
        page = stack.client().list_pipeline_runs(pipeline=dataset, sort_by="desc:created", size=1, hydrate=True)
        trackers.close(page.items[0], "FAILED")
    except Exception as error:  # the error that ended the run is the one to tell, whatever follows from it
        say_line(f"warning: the MLflow run of {dataset} stays open ({type(error).__name__})")


def _close_killed(dataset: str) -> None:
    """Mark as failed what a killed process left `running`. Under the lock no local run of the dataset can be."""
    from zenml.enums import ExecutionStatus
    from zenml.models import PipelineRunUpdate

    client = stack.client()
    if not client.list_pipelines(name=dataset).items:
        return
    unfinished = [ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING, ExecutionStatus.RUNNING]
    for status in unfinished:
        for run in client.list_pipeline_runs(
            pipeline=dataset, stack=stack.STACK, status=status, size=100, hydrate=True
        ).items:
            reason = "its process ended before the run did"
            client.zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.FAILED, status_reason=reason))
            trackers.close(run, "KILLED")


@contextmanager
def _only_one(dataset: str) -> Iterator[None]:
    """Two runs of one dataset at a time would work in the same folders and race for the same stage."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{dataset}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise PlatformError(
                f"a run of {dataset} is going on already (process {lock.read().strip() or 'unknown'})",
                hint="wait for it to end, or set MEDFLOW_HOME to another folder",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _remove_work(run: PipelineRunResponse) -> None:
    for step in run.steps.values():
        shutil.rmtree(home() / "work" / str(step.cache_key or step.id), ignore_errors=True)


# -- telling -------------------------------------------------------------------------------------


def _outcome(run: PipelineRunResponse, config: RunConfig, order: list[str], seconds: float) -> RunOutcome:
    steps = run.steps
    evaluation = steps["evaluate_test"].outputs["evaluation"][0].load()
    promotion = steps["promote"].outputs["promotion"][0].load()
    recorded = steps["record"].outputs["recorded"][0].load()
    return RunOutcome(
        run_id=str(run.id),
        name=run.name,
        dataset=config.dataset,
        status=str(run.status.value),
        steps=tuple(_step(name, steps[name]) for name in order if name in steps),
        metrics=evaluation.scores,
        model=recorded.model,
        promotion=promotion,
        seconds=round(seconds, 1),
    )


def _step(name: str, step: StepRunResponse) -> StepOutcome:
    status = str(step.status.value)
    took = (step.end_time - step.start_time).total_seconds() if step.end_time and step.start_time else 0.0
    cached = status == "cached"
    return StepOutcome(
        name=name, cached=cached, seconds=0.0 if cached else round(took, 2), status=status, made=_made(step)
    )


def _made(step: StepRunResponse) -> str:
    """A few words from the metadata of a step's outputs."""
    words = []
    for name, versions in step.outputs.items():
        facts = versions[0].run_metadata
        told = [f"{facts[key]} {word}" for key, word in MADE.items() if key in facts]
        words.append(f"{name} ({', '.join(told)})" if told else name)
    return ", ".join(words)


MADE = {"images": "images", "sizes": "", "model": "", "variant": "", "parameters": "parameters", "tag": ""}


def _summary(run: PipelineRunResponse) -> RunSummary:
    started = run.start_time or run.created
    statuses = [str(step.status.value) for step in run.steps.values()]
    return RunSummary(
        run_id=str(run.id),
        name=run.name,
        dataset=run.pipeline.name if run.pipeline else "",
        status=str(run.status.value),
        started=started,
        seconds=round((run.end_time - started).total_seconds(), 1) if run.end_time else None,
        steps=len(statuses),
        cached=statuses.count("cached"),
        model=str(run.run_metadata.get("model", "")),
        pods=str(run.run_metadata.get("pods", "")),
    )

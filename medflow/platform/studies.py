"""Tuning on the platform: start it, and what its step needs of ZenML and MLflow.

A study is named by its step's cache key: inputs, settings, search space and code, and not the budget, which travels as
ZenML's `extra`. So a study goes on exactly where the same question is asked again. In MLflow the pipeline run is the
parent and the trials are its children; those of a killed call are handed over to the call that goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zenml import get_step_context

from medflow.config.sections import RunConfig, SearchConfig, TuneBudget
from medflow.errors import PlatformError
from medflow.home import home
from medflow.platform import context, runs, store_access, trackers, training_tracker
from medflow.progress import say
from medflow.records import TuneResult
from medflow.tune import Place

STUDY_TAG = "medflow.study"
DIGITS = 12


def run(
    config: RunConfig, search: SearchConfig, budget: TuneBudget, *, name: str | None = None
) -> tuple[str, TuneResult]:
    """Run the tuning pipeline to its end: its run's id and what was found. Raises the error of the step that failed.

    ``name`` is as in ``runs.run``.
    """
    from pipelines.tuning import tuning

    config = runs.settled(config)
    response, _ = runs.execute(lambda: tuning(config, search, budget), config.dataset, say, name)
    result: TuneResult = response.steps["tune"].outputs["tuned"][0].load()
    return str(response.id), result


def settings(budget: TuneBudget) -> dict[str, Any]:
    """What a pipeline carries for ``budget``; no part of any cache key."""
    return {"tune": budget.model_dump(mode="json")}


def learning(config: RunConfig) -> RunConfig:
    """The sections that a trial reads; the others at their defaults, so that they do not name another study."""
    return RunConfig(dataset=config.dataset, models=config.models, train=config.train.determining())


# -- within the step -------------------------------------------------------------------------------


def budget() -> TuneBudget:
    extra: Any = get_step_context().pipeline_run.config.extra
    return TuneBudget.model_validate(extra["tune"])


def place(dataset: str) -> Place:
    """Where the running step's study is."""
    study = _study(dataset)
    return Place(
        study=study,
        database=home() / "tune.db",
        work=context.work_folder(),
        checkpoints=context.checkpoints(),
        access=store_access.of_store(),
        tracker=partial(training_tracker.of_step, dataset, tags={STUDY_TAG: study}),
    )


@contextmanager
def parent(dataset: str) -> Iterator[Callable[[TuneResult], TuneResult]]:
    """Make this pipeline run's MLflow run the study's; yields what writes the result there."""
    _tolerant(lambda: _adopt(dataset))

    def record(result: TuneResult) -> TuneResult:
        _tolerant(lambda: _write(dataset, result))
        return result

    yield record


def _study(dataset: str) -> str:
    key = get_step_context().step_run.cache_key
    if not key:
        raise PlatformError("the tune step has no cache key to name its study by", hint="report this as a bug")
    return f"{dataset}-{key[:DIGITS]}"


def _adopt(dataset: str) -> None:
    """Hand the trials of earlier calls over to this one, and close those that were killed."""
    mlflow, parent_id = trackers.client(), trackers.parent_run(dataset)
    experiment, study = mlflow.get_run(parent_id).info.experiment_id, _study(dataset)
    mlflow.set_tag(parent_id, "medflow.tunes", study)
    for trial in mlflow.search_runs([experiment], f"tags.`{STUDY_TAG}` = '{study}'", max_results=10_000):
        mlflow.set_tag(trial.info.run_id, "mlflow.parentRunId", parent_id)
        if trial.info.status == "RUNNING":
            mlflow.set_terminated(trial.info.run_id, "KILLED")


def _write(dataset: str, result: TuneResult) -> None:
    from medflow.report import tuning

    mlflow, parent_id = trackers.client(), trackers.parent_run(dataset)
    run = trackers.MlflowRun(mlflow, parent_id)
    best = result.winner()
    run.params({f"best/{name}": str(value) for name, value in best.values.items()})
    run.metrics({"best/score": best.score or 0.0, "trials": len(result.trials)}, step=0)
    with tempfile.TemporaryDirectory(prefix="medflow-") as folder:
        for drawn in tuning.figures(result):
            path = Path(folder) / f"{drawn.name}.png"
            path.write_bytes(drawn.png)
            run.file(path, "tuning")
    run.finish("FINISHED")


def _tolerant(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        say(f"warning: MLflow does not answer, the study is not told there ({type(error).__name__})")

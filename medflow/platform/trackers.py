"""MLflow: one parent run for a pipeline run, one child for each trained model.

The client is used directly. ZenML's own step integration imports every flavour (torch included) at
the first tracked step and resumes runs through global state, which races where steps run in parallel.
The stack's experiment tracker still says where MLflow is, so ZenML and medflow always agree.

MLflow has nothing by which two processes could agree on one parent that neither has made yet. So only steps that no
other step runs beside make it (``parent_run``: `resolve`, `tune`, `record`); trainings, which run side by side, look
for it (``child``), and where MLflow was down at `resolve` the one who makes the parent later adopts them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit, urlunsplit

from zenml import get_step_context, log_metadata

from medflow.errors import PlatformError
from medflow.platform import stack
from medflow.progress import say
from medflow.trackers import Ending, Sink, Value

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from zenml.models import PipelineRunResponse

MLFLOW = "MLflow"
RUN_TAG = "zenml.pipeline_run_id"
#: ``pipeline`` for the parent run of a pipeline run, ``step`` for its children.
KIND_TAG = "medflow.kind"
PARENT_TAG = "mlflow.parentRunId"
#: Name of the step that a child belongs to.
STEP_TAG = "medflow.step"
#: Key, in the `extra` of a pipeline run, of its whole settings as YAML.
CONFIG = "config"
LIMIT = 500
#: MLflow accepts at most this many parameters, and metrics, in one call.
BATCH = 100
METRICS_BATCH = 1000


def client() -> MlflowClient:
    """A client of the stack's tracking server."""
    from mlflow import MlflowClient

    uri = tracking_uri()
    _use_token()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def tracking_uri() -> str:
    """The stack's tracking URI. Raises PlatformError where the stack has no MLflow tracker."""
    tracker = stack.client().active_stack.experiment_tracker
    uri = getattr(tracker.config, "tracking_uri", None) if tracker else None
    if not uri:
        raise PlatformError(
            "the active stack has no MLflow experiment tracker",
            hint="run `medflow doctor` to set the local stack right",
        )
    return str(uri)


def _use_token() -> None:
    """MLflow takes its server's token from the environment alone."""
    tracker = stack.client().active_stack.experiment_tracker
    token = getattr(tracker.config, "tracking_token", None) if tracker else None
    if token:
        os.environ.setdefault("MLFLOW_TRACKING_TOKEN", str(token))


def parent_run(dataset: str) -> str:
    """Id of this pipeline run's MLflow run, made at the first call. For steps that run alone."""
    run = get_step_context().pipeline_run
    mlflow = client()
    experiment = _experiment(mlflow, dataset)
    found = _find(mlflow, experiment, str(run.id))
    if found is None:
        tags = {RUN_TAG: str(run.id), KIND_TAG: "pipeline", "zenml.pipeline_run": run.name, "medflow.dataset": dataset}
        found = mlflow.create_run(experiment, run_name=run.name, tags=tags)
        _adopt(mlflow, experiment, found.info.run_id, str(run.id))
    log_metadata(
        metadata={"mlflow_run_id": found.info.run_id, "mlflow_experiment_id": experiment}, run_id_name_or_prefix=run.id
    )
    return str(found.info.run_id)


def close(run: PipelineRunResponse, ending: Literal["FAILED", "KILLED"]) -> None:
    """Close the MLflow run of a pipeline run that did not reach `record`; nothing else would."""
    found = run.run_metadata.get("mlflow_run_id")
    if not found:
        return
    try:
        client().set_terminated(str(found), ending)
    except Exception as error:  # the run's own end is what matters, whatever follows from it
        say(f"warning: the MLflow run of {run.name} stays open ({type(error).__name__})")


def _find(mlflow: MlflowClient, experiment: str, run_id: str) -> Run | None:
    query = f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{KIND_TAG}` = 'pipeline'"
    return next(iter(mlflow.search_runs([experiment], query, max_results=1)), None)


def _adopt(mlflow: MlflowClient, experiment: str, parent: str, run_id: str) -> None:
    """Hand over the trainings that began before there was a parent."""
    query = f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{KIND_TAG}` = 'step'"
    for run in mlflow.search_runs([experiment], query, max_results=1000):
        mlflow.set_tag(run.info.run_id, PARENT_TAG, parent)


def _experiment(mlflow: MlflowClient, name: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        # With a SQLite URI MLflow would put artifacts into ./mlruns of the current folder.
        location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.create_experiment(name, artifact_location=location))
    except MlflowException:
        made = mlflow.get_experiment_by_name(name)  # by another process, since we looked
        if made is None:
            raise
        return str(made.experiment_id)


class MlflowRun:
    """``trackers.Sink`` on a child run of this pipeline run."""

    def __init__(self, mlflow: MlflowClient, run_id: str) -> None:
        self.mlflow, self.run_id = mlflow, run_id

    def params(self, values: Mapping[str, Value]) -> None:
        from mlflow.entities import Param

        items = [Param(name, str(value)[:LIMIT]) for name, value in values.items()]
        for start in range(0, len(items), BATCH):
            self.mlflow.log_batch(self.run_id, params=items[start : start + BATCH])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(items), METRICS_BATCH):
            self.mlflow.log_batch(self.run_id, metrics=items[start : start + METRICS_BATCH])

    def file(self, path: Path, folder: str) -> None:
        self.mlflow.log_artifact(self.run_id, str(path), folder)

    def model(self, files: Sequence[Path], name: str) -> None:
        """Nothing: `record` gives the parent run the one model that was chosen."""

    def finish(self, ending: Ending) -> None:
        self.mlflow.set_terminated(self.run_id, ending)


def begin(dataset: str) -> None:
    """Open this pipeline run's MLflow run. A server that is down gives one warning."""
    try:
        parent_run(dataset)
    except Exception as error:
        say(f"warning: {MLFLOW} does not answer, the run goes on without it ({type(error).__name__})")


def child(dataset: str, name: str, tags: Mapping[str, str]) -> Sink:
    """A child run of this pipeline run, for one training."""
    mlflow, context = client(), get_step_context()
    experiment = _experiment(mlflow, dataset)
    parent = _find(mlflow, experiment, str(context.pipeline_run.id))
    known = {
        KIND_TAG: "step",
        RUN_TAG: str(context.pipeline_run.id),
        STEP_TAG: context.step_run.name,
        "zenml.step_run_id": str(context.step_run.id),
    }
    if parent is not None:
        known[PARENT_TAG] = parent.info.run_id
    _close_earlier(mlflow, experiment, known, name)
    run = mlflow.create_run(experiment, run_name=name, tags={**known, **tags})
    log_metadata(metadata={"mlflow_run_id": run.info.run_id, "mlflow_parent_run_id": known.get(PARENT_TAG, "")})
    return MlflowRun(mlflow, str(run.info.run_id))


def _close_earlier(mlflow: MlflowClient, experiment: str, tags: Mapping[str, str], name: str) -> None:
    """Close what a killed attempt at this very training left running; nobody else would."""
    same = " and ".join(f"tags.`{tag}` = '{tags[tag]}'" for tag in (RUN_TAG, STEP_TAG))
    query = f"{same} and attributes.status = 'RUNNING' and attributes.run_name = '{name}'"
    for run in mlflow.search_runs([experiment], query):
        mlflow.set_terminated(run.info.run_id, "KILLED")


def without_secrets(uri: str) -> str:
    """A URI without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

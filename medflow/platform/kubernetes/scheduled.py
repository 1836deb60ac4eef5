"""A run that a schedule started: its pod has no run yet, and nobody has looked whether it should go on."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zenml.client import Client
from zenml.enums import MetadataResourceTypes
from zenml.integrations.kubernetes.constants import ORCHESTRATOR_RUN_ID_ANNOTATION_KEY, RUN_ID_ANNOTATION_KEY
from zenml.integrations.kubernetes.kube_utils import sanitize_label_value
from zenml.logger import get_logger
from zenml.models import PipelineSnapshotResponse, RunMetadataResource
from zenml.pipelines.run_utils import create_placeholder_run

from medflow.errors import MedflowError
from medflow.platform.kubernetes import others
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.patience import patiently
from medflow.platform.scheduling.records import GOING_ON

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

logger = get_logger(__name__)
#: Set by Kubernetes on the jobs of a CronJob: when each was due.
DUE = "batch.kubernetes.io/cronjob-scheduled-timestamp"
#: The same in the metadata of a run, which is known longer than its job.
DUE_OF_RUN = "due"
#: Under this name in a pipeline's ``extra``: run only when the data changed.
ONLY_WHEN_CHANGED = "only_when_the_data_changed"


def begin(snapshot: PipelineSnapshotResponse, here: Cluster) -> str:
    """The run of this pod: made, and written on the job where ZenML and `running` look for it.

    A pod that replaces a lost one goes on with its run.
    """
    job = here.own_job()
    annotations: Mapping[str, str] = job.job["metadata"].get("annotations", {})
    if run_id := annotations.get(RUN_ID_ANNOTATION_KEY):
        return run_id
    host = socket.gethostname()
    run = create_placeholder_run(snapshot=snapshot, orchestrator_run_id=host)
    labels = {"run_id": str(run.id), "run_name": sanitize_label_value(run.name)}
    marks = {RUN_ID_ANNOTATION_KEY: str(run.id), ORCHESTRATOR_RUN_ID_ANNOTATION_KEY: host}
    body = {"metadata": {"labels": labels, "annotations": marks}}
    # The next pod would know nothing of this run, make a second one, and give way to this.
    patiently(lambda: here.batch.patch_namespaced_job(job.name, here.namespace, body), logger.warning)
    if due := annotations.get(DUE):
        resource = RunMetadataResource(id=run.id, type=MetadataResourceTypes.PIPELINE_RUN)
        patiently(
            lambda: Client().create_run_metadata(metadata={DUE_OF_RUN: due}, resources=[resource]), logger.warning
        )
    return str(run.id)


def needless(snapshot: PipelineSnapshotResponse, run_id: str, here: Cluster) -> str | None:
    """Why a run should end before its first step, or None; None too where a step of it has begun.

    A pod that replaces a lost one asks again: the lost one may have had no answer, or have ended the run upon it.
    """
    if patiently(lambda: _has_begun(run_id, here), logger.warning):
        return None
    own = patiently(lambda: Client().get_pipeline_run(run_id), logger.warning)
    if own.status.is_finished:
        return own.get_body().status_reason or f"it is {own.status.value} already"
    before = patiently(lambda: _before(own, snapshot, here), logger.warning)
    if before:
        return f"a run of {snapshot.pipeline_configuration.name} {GOING_ON}: {before[0].name}"
    return _unchanged(snapshot) if snapshot.pipeline_configuration.extra.get(ONLY_WHEN_CHANGED) else None


def _has_begun(run_id: str, here: Cluster) -> bool:
    """Whether a step of a run has begun. Its job is there before ZenML knows of it."""
    steps = Client().list_run_steps(pipeline_run_id=run_id, size=1)
    return steps.total > 0 or any(job.step is not None for job in here.jobs(run_id))


def _before(own: PipelineRunResponse, snapshot: PipelineSnapshotResponse, here: Cluster) -> list[PipelineRunResponse]:
    """Runs to give way to: of two that start in the same moment, the second does."""
    place = snapshot.pipeline_configuration.extra.get(others.SENT_TO)
    found = others.going_on(snapshot.pipeline_configuration.name, here, place)
    return [run for run in found if others.is_older(run, own)]


def _unchanged(snapshot: PipelineSnapshotResponse) -> str | None:
    from medflow.platform import unchanged  # only here: it loads every dataset

    dataset, steps = snapshot.pipeline_configuration.name, snapshot.step_configurations
    try:
        return patiently(lambda: unchanged.reason(dataset, steps), logger.warning)
    except MedflowError as problem:
        # The step that looks at the source is tried several times, and tells.
        logger.warning("Not known whether the data changed: %s", problem.message)
        return None

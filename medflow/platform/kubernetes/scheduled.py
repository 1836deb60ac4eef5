"""A run that a schedule started: its pod has no run yet, and nobody has looked whether it should go on."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

logger = get_logger(__name__)
#: Set by Kubernetes on the jobs of a CronJob: when each was due.
DUE = "batch.kubernetes.io/cronjob-scheduled-timestamp"
#: The same in the metadata of a run, which is known longer than its job.
DUE_OF_RUN = "due"
#: Under this name in a pipeline's ``extra``: run only when the data changed.
ONLY_WHEN_CHANGED = "only_when_the_data_changed"


def begin(snapshot: PipelineSnapshotResponse, here: Cluster) -> tuple[str, bool]:
    """The run of this pod, and whether it is new: made, and written on the job where ZenML and `running` look for it.

    A pod that replaces a lost one goes on with its run.
    """
    job = here.own_job()
    annotations: Mapping[str, str] = job.job["metadata"].get("annotations", {})
    if run_id := annotations.get(RUN_ID_ANNOTATION_KEY):
        return run_id, False
    host = socket.gethostname()
    run = create_placeholder_run(snapshot=snapshot, orchestrator_run_id=host)
    labels = {"run_id": str(run.id), "run_name": sanitize_label_value(run.name)}
    marks = {RUN_ID_ANNOTATION_KEY: str(run.id), ORCHESTRATOR_RUN_ID_ANNOTATION_KEY: host}
    body = {"metadata": {"labels": labels, "annotations": marks}}
    here.batch.patch_namespaced_job(job.name, here.namespace, body)
    if due := annotations.get(DUE):
        resource = RunMetadataResource(id=run.id, type=MetadataResourceTypes.PIPELINE_RUN)
        Client().create_run_metadata(metadata={DUE_OF_RUN: due}, resources=[resource])
    return str(run.id), True


def needless(snapshot: PipelineSnapshotResponse, run_id: str, here: Cluster) -> str | None:
    """Why a new run should end before its first step, or None."""
    dataset = snapshot.pipeline_configuration.name
    own = Client().get_pipeline_run(run_id)
    # Of two that start in the same moment, the second gives way.
    place = snapshot.pipeline_configuration.extra.get(others.SENT_TO)
    before = [run for run in others.going_on(dataset, here, place) if _key(run) < _key(own)]
    if before:
        return f"a run of {dataset} is going on already: {before[0].name}"
    if not snapshot.pipeline_configuration.extra.get(ONLY_WHEN_CHANGED):
        return None
    from medflow.platform import unchanged  # only here: it loads every dataset

    try:
        return unchanged.reason(dataset, snapshot.step_configurations)
    except MedflowError as problem:
        # The step that looks at the source is tried several times, and tells.
        logger.warning("Not known whether the data changed: %s", problem.message)
        return None


def _key(run: PipelineRunResponse) -> tuple[Any, str]:
    return run.created, str(run.id)

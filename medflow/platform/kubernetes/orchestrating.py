"""The program of the pod that starts the steps: ZenML's own, with six things beside it.

A cache hit counts only if its artifacts are whole. The image must hold the code whose digest is in the cache keys. Each
job is compared with what was asked, and is ended, with the reason, where no waiting can help. Logs and events of
every pod are kept in the artifact store. The MLflow run of a run that failed is closed. A run that a schedule started
ends at once where another is going on or nothing is new. All of it is done here and not where the run was started,
because that machine may be gone, and a scheduled run has none.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import kube_utils
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint as zenml_entrypoint
from zenml.logger import get_logger
from zenml.models import PipelineRunUpdate, PipelineSnapshotResponse

from medflow.config.sections.place import StepPlace
from medflow.platform import caching, trackers
from medflow.platform.kubernetes import cluster, scheduled, stale, transport
from medflow.platform.kubernetes.entrypoint import StepEntrypoint, prepare
from medflow.platform.kubernetes.keeping import Keeper
from medflow.platform.kubernetes.monitoring import Monitor, PatientRunner
from medflow.platform.kubernetes.settings import ASKED

logger = get_logger(__name__)
MODULE = "medflow.platform.kubernetes.orchestrating"


def main() -> None:
    """Run all steps of one snapshot, given by ``--snapshot_id``, and ``--run_id`` where the run is known already."""
    arguments = zenml_entrypoint.parse_args()
    prepare()
    snapshot = Client().get_snapshot(arguments.snapshot_id)
    here = cluster.inside(_namespace())
    run_id = arguments.run_id or scheduled.begin(snapshot, here)
    if problem := stale.problem(snapshot):
        _end(run_id, ExecutionStatus.FAILED, problem)
        return
    if not arguments.run_id and (reason := scheduled.needless(snapshot, run_id, here)):
        # ZenML has no other word for a run that was left out, and makes it `stopped`, as no step goes on.
        _end(run_id, ExecutionStatus.STOPPING, reason)
        return
    keeper = Keeper(here, Client().active_stack.artifact_store)
    try:
        with keeper, caching.checked_hits(logger.info):
            zenml_entrypoint.StepEntrypointConfiguration = StepEntrypoint  # type: ignore[misc]
            _watch(Monitor(here, keeper, asked_of(snapshot)))
            with transport.limited():
                zenml_entrypoint.main()
    finally:
        _close_tracking(keeper.run_id)


def _close_tracking(run_id: str) -> None:
    """The MLflow run of a run that failed; one that completed was closed by its last step."""
    try:
        run = Client().get_pipeline_run(run_id) if run_id else None
        if run is not None and run.status == ExecutionStatus.FAILED:
            trackers.close(run, "FAILED")
    except Exception as problem:  # another pod for a run that is over would find no token
        logger.warning("The MLflow run of %s may still be open: %s", run_id, problem)


def _end(run_id: str, status: ExecutionStatus, reason: str) -> None:
    """End a run before its first step, and say why."""
    logger.warning(reason)
    store, run = Client().zen_store, Client().get_pipeline_run(run_id)
    if run.status.is_finished:  # a pod did so that was lost right after
        return
    # ZenML takes a status only from a run whose orchestrator it knows, and that stays the first pod.
    if not run.orchestrator_run_id:
        store.update_run(UUID(run_id), PipelineRunUpdate(orchestrator_run_id=cluster.pod_name()))
    store.update_run(UUID(run_id), PipelineRunUpdate(status=status, status_reason=reason[:255]))


def _watch(monitor: Monitor) -> None:
    """Put ours around ZenML's start and check of each step."""
    kube_utils.create_job = monitor.starting(kube_utils.create_job)
    kube_utils.check_job_status = monitor.checking(kube_utils.check_job_status)
    zenml_entrypoint.DagRunner = partial(PatientRunner, ended=monitor.ended)  # type: ignore[misc, assignment]


def asked_of(snapshot: PipelineSnapshotResponse) -> dict[str, StepPlace]:
    """What was asked for each step's pod, by its name in the pipeline."""
    extras = {name: step.config.extra.get(ASKED) for name, step in snapshot.step_configurations.items()}
    return {name: StepPlace.model_validate(asked) for name, asked in extras.items() if asked}


def _namespace() -> str:
    orchestrator: Any = Client().active_stack.orchestrator
    return str(orchestrator.config.kubernetes_namespace)


if __name__ == "__main__":
    main()

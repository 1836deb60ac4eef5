"""The end of a run that does not come to its own: what it holds in the cluster goes, and its records are closed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.exceptions import IllegalOperationError
from zenml.models import PipelineRunUpdate, StepRunUpdate
from zenml.utils.time_utils import utc_now

from medflow.platform import trackers
from medflow.platform.context import StoredFiles
from medflow.platform.kubernetes import keeping, reasons
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.gathering import Gathered
from medflow.platform.kubernetes.patience import passes
from medflow.progress import say

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

#: Pods that are ended have 30 seconds for it.
GONE_SECONDS = 60.0
POLL_SECONDS = 1.0


def stop(run_id: str, here: Cluster) -> None:
    """Stop a run and remove what it holds in the cluster: its steps' jobs, the orchestrator's, the token's Secret.

    A second call does what the first left. Of a run that came to its own end only what is left in the cluster goes; its
    records stay as they are.
    """
    run = Client().get_pipeline_run(run_id)
    had_ended = run.status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED)
    # First, or whoever follows the run would take it for one whose pods were lost.
    if not run.status.is_finished:
        # The orchestrator may have closed it since.
        with suppress(IllegalOperationError):
            update = PipelineRunUpdate(status=ExecutionStatus.STOPPING, status_reason="stopped by its user")
            Client().zen_store.update_run(run.id, update)
    jobs = here.jobs(run_id)
    said = Gathered(here)
    for job in jobs:
        said.note(job)
    for job in jobs:
        here.delete_job(job.name)
    if not had_ended:
        _stop_steps(run_id)
    remove_token(run_id, here)
    if had_ended:
        return
    trackers.close(run, "KILLED")
    if said.pods:
        _keep(said, run_id)


def _stop_steps(run_id: str) -> None:
    """Close the steps whose pods are ended before they can say so: with the last of them the run is stopped.

    The run itself cannot be asked for it, since ZenML takes one with a running step that is said to be stopped for one
    that is running (`_compute_static_pipeline_run_status`).
    """
    steps = Client().list_run_steps(pipeline_run_id=run_id, size=1000, exclude_retried=True).items
    for step in steps:
        if not step.status.is_finished:
            with suppress(IllegalOperationError):  # its pod has said so
                update = StepRunUpdate(status=ExecutionStatus.STOPPED, end_time=utc_now())
                Client().zen_store.update_run_step(step.id, update)


def _keep(said: Gathered, run_id: str) -> None:
    """What the pods had said: the orchestrator may have no time to write it."""
    store = Client().active_stack.artifact_store
    try:
        said.write(StoredFiles(store, keeping.folder(store.path, run_id)), "events.json")
    except Exception as error:  # the run is stopped, whatever becomes of its logs
        say(f"warning: logs and events of the pods of run {run_id} are not kept ({type(error).__name__}: {error})")


def stop_submitted(name: str, here: Cluster) -> None:
    """Stop the run of this name, as far as its submission came."""
    for run in Client().list_pipeline_runs(name=f"equals:{name}", size=1).items:
        stop(str(run.id), here)


def fail(run: PipelineRunResponse, jobs: Sequence[Observed], here: Cluster, reason: str) -> None:
    """Close a run whose orchestrator is over or can never start; its steps would go on without one.

    They end first, since nobody looks at a run again that is closed; a second call does what the first left.
    """
    for job in jobs:
        if not reasons.over(job):
            here.delete_job(job.name)
    Client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.FAILED, status_reason=reason[:255]))
    trackers.close(run, "KILLED")


def await_gone(run_id: str, here: Cluster) -> None:
    """Return once none of a run's pods is at work: another run writes into the same checkpoints' folders."""
    until = time.monotonic() + GONE_SECONDS
    while left := [pod for pod in here.pods(run_id) if pod["status"].get("phase") not in ("Succeeded", "Failed")]:
        if time.monotonic() > until:
            names = ", ".join(pod["metadata"]["name"] for pod in left)
            say(f"warning: pods of the run {run_id}, which is over, have not ended: {names}")
            return
        time.sleep(POLL_SECONDS)


def remove_token(run_id: str, here: Cluster) -> None:
    """Remove the Secret that lets a run's pods speak to the server; the orchestrator does it, where it gets so far."""
    try:
        run = Client().get_pipeline_run(run_id)
        # A schedule's runs share one, which its next run needs.
        if run.status.is_finished and run.snapshot is not None and run.snapshot.schedule is None:
            here.delete_secret(f"zenml-token-{run.snapshot.id}")
    except Exception as error:  # how the run ended is to be told, whatever becomes of this
        if not passes(error):
            raise
        say(f"warning: the token's Secret of run {run_id} may still be there ({type(error).__name__})")

"""Other runs of a dataset: which stand in a new one's way, and which are dead and only look alive.

What a run may not share with another is its checkpoints' folders, which lie in the artifact store. A stage needs no
such care: it is given only where its holder is still the one that the candidate was compared with (`recording`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from zenml.client import Client
from zenml.enums import ExecutionStatus, StackComponentType

from medflow.config.sections.stack import ClusterConfig
from medflow.errors import PlatformError
from medflow.platform.kubernetes import ending, reasons
from medflow.platform.kubernetes.cluster import Cluster

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StackResponse

#: Under this name in a pipeline's ``extra``: the cluster that a run was sent to.
SENT_TO = "cluster"
#: A run is made a moment before the job of its orchestrator.
STARTING = timedelta(minutes=1)
UNFINISHED = (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING, ExecutionStatus.RUNNING)


def sent_to(cluster: ClusterConfig) -> dict[str, str]:
    """How a run notes its cluster."""
    return {"context": cluster.context, "namespace": cluster.namespace}


def check_stack(run: PipelineRunResponse, stack: str, namespace: str) -> None:
    """Raises PlatformError where a run's jobs lie elsewhere, since they would go on when its records say `stopped`."""
    noted = run.config.extra.get(SENT_TO) or {}
    own = run.stack.name if run.stack else stack
    if own == stack and noted.get("namespace", namespace) == namespace:
        return
    where = f"stack {own}" + (f", namespace {noted['namespace']}" if noted else "")
    raise PlatformError(
        f"run {run.name} was sent to {where}, not to stack {stack}, namespace {namespace}",
        hint=f"`medflow stack stop {own} {run.id}`",
    )


def refuse_second(dataset: str, here: Cluster, place: dict[str, str], started: str | None = None) -> None:
    """Raises PlatformError where a run of the dataset goes on that writes into the same artifact store.

    Of two that look in the same moment neither sees the other: with the id of one that has ``started``, only what is
    older stands in its way.
    """
    own = Client().active_stack_model
    mine = Client().get_pipeline_run(started) if started else None
    for run in going_on(dataset, here, place):
        if mine is not None and not is_older(run, mine):
            continue
        stack = run.stack.name if run.stack else own.name
        raise PlatformError(
            f"a run of {dataset} is going on already: {run.name}, {run.id}"
            + ("" if _is_of(run, own, place) else f", sent to another cluster by stack {stack}, with the same store"),
            hint=f"wait for it to end, or stop it: `medflow stack stop {stack} {run.id}`",
        )


def is_older(run: PipelineRunResponse, other: PipelineRunResponse) -> bool:
    return (run.created, str(run.id)) < (other.created, str(other.id))


def going_on(dataset: str, here: Cluster, place: dict[str, str] | None) -> Iterator[PipelineRunResponse]:
    """Runs of a dataset that another would get into the way of.

    Of this stack and cluster: those whose orchestrator lives; one whose orchestrator is gone is closed, as nobody else
    would. Of others, where this cluster knows nothing: those that use the same artifact store. ``place`` is what
    ``sent_to`` tells; None where that is not known.
    """
    client = Client()
    if not client.list_pipelines(name=dataset).items:
        return
    own = client.active_stack_model
    for status in UNFINISHED:
        for run in client.list_pipeline_runs(pipeline=dataset, status=status, size=100, hydrate=True).items:
            if _is_of(run, own, place):
                yield from _alive(run, here)
            elif run.stack is not None and _store(run.stack) == _store(own):
                yield run


def _alive(run: PipelineRunResponse, here: Cluster) -> Iterator[PipelineRunResponse]:
    jobs = here.jobs(str(run.id))
    orchestrator = next((job for job in jobs if job.step is None), None)
    starts = orchestrator is None and datetime.now(UTC) - run.created.replace(tzinfo=UTC) < STARTING
    if starts or (orchestrator is not None and not reasons.over(orchestrator)):
        yield run
        return
    ending.fail(run, jobs, here, "its orchestrator ended before the run did")
    ending.remove_token(str(run.id), here)
    ending.await_gone(str(run.id), here)


def _is_of(run: PipelineRunResponse, stack: StackResponse, place: dict[str, str] | None) -> bool:
    """Whether a run's jobs are to be found where this process looks."""
    if run.stack is None or run.stack.id != stack.id:
        return False
    noted = run.config.extra.get(SENT_TO)
    return noted is None or place is None or noted == place


def _store(stack: StackResponse) -> tuple[Any, Any]:
    """Address and folder of a stack's artifact store."""
    [store] = stack.components[StackComponentType.ARTIFACT_STORE]
    return (store.configuration.get("client_kwargs") or {}).get("endpoint_url"), store.configuration.get("path")

"""Start a pipeline on a cluster and wait for its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from zenml.client import Client
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.exceptions import IllegalOperationError
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint_configuration as zenml_start
from zenml.models import PipelineRunUpdate

from medflow.config.sections.place import PlaceConfig
from medflow.config.sections.stack import StackConfig
from medflow.errors import PlatformError
from medflow.platform import naming, trackers
from medflow.platform import stack as stacks
from medflow.platform.kubernetes import cluster, reasons, settings, transport, watching
from medflow.platform.kubernetes.cluster import Cluster

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

#: The orchestrator's program, `orchestrating`; not imported, because it is for pods.
PROGRAM = "medflow.platform.kubernetes.orchestrating"
#: A run is made a moment before the job of its orchestrator.
STARTING = timedelta(minutes=1)
UNFINISHED = (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING, ExecutionStatus.RUNNING)


def execute(
    pipeline: Any,
    dataset: str,
    say: Callable[[str], None],
    place: PlaceConfig,
    stack: StackConfig,
    *,
    name: str | None = None,
) -> tuple[PipelineRunResponse, list[str]]:
    """Run a pipeline to its end: the run, and its steps in the order of the definition. Raises PlatformError.

    Ctrl-C stops the run in the cluster too. ``name`` is as in ``runs.run``.
    """
    stacks.use()
    here = cluster.connect(stack.cluster.context, stack.cluster.namespace)
    refuse_second(dataset, here)
    configured = placed(pipeline, place, stack, name=naming.free(name))
    run_id = start(configured)
    say(f"run {run_id} goes on in the cluster, namespace {stack.cluster.namespace}")
    try:
        run = watching.follow(run_id, here, say)
    except KeyboardInterrupt:
        say("stopping the run")
        stop(run_id, here)
        raise
    finally:
        remove_token(run_id, here)
    return run, list(configured.invocations)


def placed(pipeline: Any, place: PlaceConfig, stack: StackConfig, *, name: str | None = None) -> Any:
    """The pipeline with image, sizes, deadlines and retries of its pods, and the name of its run."""
    pipeline.prepare()
    uses = {use: str(invocation.step.name) for use, invocation in pipeline.invocations.items()}
    return pipeline.with_options(
        run_name=name,
        execution_mode=ExecutionMode.FAIL_FAST,
        settings=settings.of_run(place, stack),
        steps=settings.of_steps(place, uses, stack),
    )


def start(configured: Any) -> str:
    """Submit a pipeline; the id of its run."""
    with own_program(), transport.limited():
        return str(configured().id)


@contextmanager
def own_program() -> Iterator[None]:
    """Within this block the orchestrator's pods run medflow's program around ZenML's."""
    configuration = zenml_start.KubernetesOrchestratorEntrypointConfiguration
    before = configuration.get_entrypoint_command
    configuration.get_entrypoint_command = classmethod(lambda cls: ["python", "-m", PROGRAM])  # type: ignore
    try:
        yield
    finally:
        configuration.get_entrypoint_command = before  # type: ignore[method-assign]


def stop(run_id: str, here: Cluster) -> None:
    """Stop a run and remove what it holds in the cluster: its steps' jobs, the orchestrator's, the token's Secret."""
    run = Client().get_pipeline_run(run_id)
    # First, or whoever follows the run would take it for one whose pods were lost.
    if not run.status.is_finished:
        for status in (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED):
            # The orchestrator may see the first and set the second before it is set here.
            with suppress(IllegalOperationError):
                update = PipelineRunUpdate(status=status, status_reason="stopped by its user")
                Client().zen_store.update_run(run.id, update)
    for job in here.jobs(run_id):
        here.delete_job(job.name)
    trackers.close(run, "KILLED")
    remove_token(run_id, here)


def remove_token(run_id: str, here: Cluster) -> None:
    """Remove the Secret that lets a run's pods speak to the server; the orchestrator does it, where it gets so far."""
    run = Client().get_pipeline_run(run_id)
    # A schedule's runs share one, which its next run needs.
    if run.status.is_finished and run.snapshot is not None and run.snapshot.schedule is None:
        here.delete_secret(f"zenml-token-{run.snapshot.id}")


def refuse_second(dataset: str, here: Cluster) -> None:
    """Two runs of a dataset at a time would race for the same stage. Raises PlatformError."""
    for run in going_on(dataset, here):
        raise PlatformError(
            f"a run of {dataset} is going on already: {run.name}, {run.id}",
            hint=f"wait for it to end, or stop it: `medflow stack stop STACK {run.id}`",
        )


def going_on(dataset: str, here: Cluster) -> Iterator[PipelineRunResponse]:
    """Runs of a dataset whose orchestrator lives. One whose orchestrator is gone is closed, as nobody else would."""
    client = Client()
    if not client.list_pipelines(name=dataset).items:
        return
    for status in UNFINISHED:
        for run in client.list_pipeline_runs(pipeline=dataset, status=status, size=100).items:
            orchestrator = next((job for job in here.jobs(str(run.id)) if job.step is None), None)
            starts = orchestrator is None and datetime.now(UTC) - run.created.replace(tzinfo=UTC) < STARTING
            if starts or (orchestrator is not None and not reasons.over(orchestrator)):
                yield run
                continue
            reason = "its orchestrator ended before the run did"
            client.zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.FAILED, status_reason=reason))
            trackers.close(client.get_pipeline_run(run.id), "KILLED")

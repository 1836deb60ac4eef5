"""Start a pipeline on a cluster and wait for its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zenml.enums import ExecutionMode
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint_configuration as zenml_start

from medflow.config.sections.place import PlaceConfig, StepPlace
from medflow.config.sections.stack import StackConfig
from medflow.errors import PlatformError
from medflow.platform import naming
from medflow.platform import stack as stacks
from medflow.platform.kubernetes import cluster, ending, others, settings, transport, watching
from medflow.platform.kubernetes.patience import patiently

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from medflow.platform.kubernetes.cluster import Cluster

#: The orchestrator's program, `orchestrating`; not imported, because it is for pods.
PROGRAM = "medflow.platform.kubernetes.orchestrating"


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

    Ctrl-C stops the run in the cluster too, from its submission on. ``name`` is as in ``runs.run``.
    """
    stacks.use()
    here = cluster.connect(stack.cluster.context, stack.cluster.namespace)
    with cluster.refusals_told():
        others.refuse_second(dataset, here, others.sent_to(stack.cluster))
    # Given here, so that a run is found whose submission was interrupted.
    given = naming.free(name) or naming.dated(pipeline.name)
    configured = placed(pipeline, place, stack, name=given)
    try:
        run_id = start(configured)
        say(f"run {run_id} goes on in the cluster, namespace {stack.cluster.namespace}")
        _give_way(run_id, dataset, here, stack, say)
        run = _followed(run_id, here, say, place.orchestrator)
    except KeyboardInterrupt:
        say("stopping the run")
        patiently(lambda: ending.stop_submitted(given, here), say)
        raise
    return run, list(configured.invocations)


def _give_way(run_id: str, dataset: str, here: Cluster, stack: StackConfig, say: Callable[[str], None]) -> None:
    """Stop a run that another one came before, after both had seen none. Raises PlatformError then."""

    def problem() -> PlatformError | None:
        try:
            others.refuse_second(dataset, here, others.sent_to(stack.cluster), started=run_id)
        except PlatformError as found:
            return found
        return None

    if found := patiently(problem, say):
        patiently(lambda: ending.stop(run_id, here), say)
        raise found


def _followed(run_id: str, here: Cluster, say: Callable[[str], None], asked: StepPlace) -> PipelineRunResponse:
    try:
        return watching.follow(run_id, here, say, asked)
    finally:
        ending.remove_token(run_id, here)


def placed(pipeline: Any, place: PlaceConfig, stack: StackConfig, *, name: str | None = None) -> Any:
    """The pipeline with image, sizes, deadlines and retries of its pods, and the name of its run."""
    pipeline.prepare()
    uses = {use: str(invocation.step.name) for use, invocation in pipeline.invocations.items()}
    return pipeline.with_options(
        run_name=name,
        execution_mode=ExecutionMode.FAIL_FAST,
        extra={others.SENT_TO: others.sent_to(stack.cluster)},
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

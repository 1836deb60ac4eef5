"""Follow a run from the machine that started it: tell what its steps do, and why one does not.

The ZenML server is asked what the steps are, the cluster why they wait. Either may be away for a while: that is waited
out, since the run goes on without this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from zenml.client import Client
from zenml.enums import ExecutionStatus

from medflow import errors
from medflow.config.sections.place import StepPlace
from medflow.errors import PlatformError
from medflow.platform.kubernetes import ending, reasons
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.keeping import FAILURE, folder
from medflow.platform.kubernetes.patience import POLL_SECONDS, patiently
from medflow.progress import say as say_line

if TYPE_CHECKING:
    from zenml.models import ExceptionInfo, PipelineRunResponse, StepRunResponse

UNDONE = (ExecutionStatus.FAILED, ExecutionStatus.RETRYING)
#: After the last step the orchestrator writes logs and events, and removes its token.
AFTERMATH_SECONDS = 90.0


def follow(
    run_id: str, cluster: Cluster, say: Callable[[str], None] = say_line, asked: StepPlace | None = None
) -> PipelineRunResponse:
    """Wait for a run's end, telling of its steps. Raises PlatformError where it did not complete.

    ``asked`` is what the orchestrator's pod must be like.
    """
    teller = _Teller(say)
    while True:
        run = patiently(lambda: Client().get_pipeline_run(run_id), say)
        steps = patiently(lambda: _steps(run_id), say)
        jobs = patiently(lambda: cluster.jobs(run_id), say)
        teller.tell(steps)
        if run.status.is_finished:
            break
        teller.tell_waiting(jobs, steps)
        patiently(partial(_fail_where_nothing_can_come, run, jobs, cluster, asked), say)
        time.sleep(POLL_SECONDS)
    _await_aftermath(run_id, cluster, say)
    run = patiently(lambda: Client().get_pipeline_run(run_id), say)
    if run.status != ExecutionStatus.COMPLETED:
        raise PlatformError(
            f"run {run.name} ended as {run.status.value}: {why(run, steps)}",
            hint="; ".join((*hints(steps), f"logs and events of its pods: {logs_of(run)}")),
        )
    return run


def why(run: PipelineRunResponse, steps: dict[str, StepRunResponse]) -> str:
    """The reason of a run that failed, in one line: what the cluster said of a step, or what the step raised."""
    metadata = run.run_metadata
    told = [f"step {key.removeprefix(FAILURE)}: {text}" for key, text in metadata.items() if key.startswith(FAILURE)]
    told += [
        f"step {name}: {raised(step.exception_info)}"
        for name, step in steps.items()
        if step.status in UNDONE and f"{FAILURE}{name}" not in metadata
    ]
    return "; ".join(told) or run.get_body().status_reason or "no step told why"


def hints(steps: dict[str, StepRunResponse]) -> list[str]:
    """What to do next, as the errors of the steps that failed say."""
    told = [hint_of(step.exception_info) for step in steps.values() if step.status in UNDONE]
    return [hint for hint in dict.fromkeys(told) if hint]


def raised(info: ExceptionInfo | None) -> str:
    """What a step raised, in one line: medflow's own words as on this machine, others after the name of their class."""
    if info is None:
        return "it ended without a word; see its pod's log"
    words = " ".join((info.message or "").split())
    return words if _is_ours(info) else f"{(info.source or '').rpartition('.')[2]}: {words}".strip(": ")


def hint_of(info: ExceptionInfo | None) -> str:
    """The hint of an error of medflow's that a step raised; empty where it raised another."""
    lines = info.traceback.splitlines() if info is not None and _is_ours(info) else []
    return next((line.removeprefix(errors.HINT) for line in reversed(lines) if line.startswith(errors.HINT)), "")


def _is_ours(info: ExceptionInfo) -> bool:
    return (info.source or "").startswith(f"{errors.__name__}.")


def logs_of(run: PipelineRunResponse) -> str:
    """Where logs and events of a run's pods lie."""
    store = Client().active_stack.artifact_store
    return folder(store.path, str(run.id))


def _steps(run_id: str) -> dict[str, StepRunResponse]:
    page = Client().list_run_steps(pipeline_run_id=run_id, size=1000, hydrate=True, exclude_retried=True)
    return {step.name: step for step in page.items}


class _Teller:
    """Says each thing once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.told: set[str] = set()

    def once(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.say(line)

    def tell(self, steps: dict[str, StepRunResponse]) -> None:
        for name, step in sorted(steps.items(), key=lambda item: (item[1].start_time or item[1].created, item[0])):
            attempt = f" (attempt {step.version})" if step.version > 1 else ""
            if step.status == ExecutionStatus.CACHED:
                self.once(f"{name} cached")
                continue
            self.once(f"{name}{attempt} …")
            if step.status == ExecutionStatus.COMPLETED and step.end_time and step.start_time:
                self.once(f"{name} done in {(step.end_time - step.start_time).total_seconds():.1f}s")
            elif step.status in UNDONE:
                self.once(f"{name}{attempt} {step.status.value}: {raised(step.exception_info)}")

    def tell_waiting(self, jobs: tuple[Observed, ...], steps: dict[str, StepRunResponse]) -> None:
        for job in jobs:
            waits = None if reasons.over(job) else reasons.pending(job)
            if waits:
                self.once(f"{job.step or 'the orchestrator'} waits: {waits}")


def _fail_where_nothing_can_come(
    run: PipelineRunResponse, jobs: tuple[Observed, ...], cluster: Cluster, asked: StepPlace | None
) -> None:
    """End a run, and its steps, whose orchestrator cannot start, or is over without having said so."""
    orchestrator = next((job for job in jobs if job.step is None), None)
    if orchestrator is None:
        reason: str | None = "its orchestrator's job is gone from the cluster"
    else:
        problem = reasons.fatal(orchestrator, asked) or reasons.ended(orchestrator)
        reason = problem and f"the orchestrator: {problem}"
        if reason is None and reasons.succeeded(orchestrator):
            reason = "its orchestrator ended before the run did"
    if reason is None or _fresh(run.id):
        return
    ending.fail(run, jobs, cluster, reason)


def _fresh(run_id: object) -> bool:
    """Whether the run has come to its end meanwhile: the job may be over a moment before the last look."""
    return bool(Client().get_pipeline_run(str(run_id)).status.is_finished)


def _await_aftermath(run_id: str, cluster: Cluster, say: Callable[[str], None]) -> None:
    until = time.monotonic() + AFTERMATH_SECONDS
    while time.monotonic() < until:
        jobs = [job for job in patiently(lambda: cluster.jobs(run_id), say) if job.step is None]
        stuck = [job for job in jobs if not reasons.over(job) and reasons.fatal(job)]
        for job in stuck:
            # It came for one that was lost in its last moments, and the token that it wants is gone with the run.
            say("the orchestrator's pod was lost when the run was over; logs and events of the pods may be incomplete")
            patiently(partial(cluster.delete_job, job.name), say)
        if stuck or all(reasons.over(job) for job in jobs):
            return
        time.sleep(1.0)
    say("the orchestrator's pod has not ended yet; logs and events of the pods may be incomplete")

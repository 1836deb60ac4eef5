"""What the pods of a run have said: kept with the run when it is over, read from the cluster while it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zenml.client import Client

from medflow.errors import ConfigError
from medflow.platform.context import StoredFiles
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.keeping import FOLDER

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

ORCHESTRATOR = "orchestrator"
"""In a step's place: the pod that starts the others."""
STEP_LABEL = "step_name"


@dataclass(frozen=True)
class PodLog:
    step: str
    pod: str
    created: str
    """ISO 8601."""
    text: str
    """Each line with the time at which it was written."""


def of_run(run: PipelineRunResponse, here: Cluster, step: str | None = None) -> tuple[PodLog, ...]:
    """The logs of a run's pods, or of those of one step, oldest first; a step that was tried again has several.

    A pod that has left the cluster while its run goes on has none until the run is over. Raises ConfigError where
    there is none, naming the steps that have one.
    """
    folder = run.run_metadata.get(FOLDER)
    kept: list[PodLog] = []
    if folder is not None and run.status.is_finished:
        kept = kept_in(StoredFiles(Client().active_stack.artifact_store, str(folder)))
    return of_step(kept or _in_cluster(run, here), step, f"run {run.name}")


def of_step(found: list[PodLog], step: str | None, run: str) -> tuple[PodLog, ...]:
    """Those of one step, or all, oldest first. Raises ConfigError as ``of_run``."""
    wanted = [log for log in found if step in (None, log.step)]
    if not wanted:
        steps = ", ".join(sorted({log.step for log in found})) or "none"
        what = f"step {step!r} of {run}" if step else run
        raise ConfigError(
            f"{what} has no log of a pod; a cached step has no pod, and one that waits has said nothing",
            hint=f"steps with a log: {steps}",
        )
    return tuple(sorted(wanted, key=lambda log: (log.created, log.pod)))


def kept_in(files: StoredFiles) -> list[PodLog]:
    """What `keeping` wrote into a run's folder."""
    names = set(files.names())
    pods = [name.removesuffix(".log") for name in names if name.endswith(".log") and _state(name) in names]
    return [
        _log(json.loads(files.read(_state(pod)) or b"{}"), (files.read(f"{pod}.log") or b"").decode()) for pod in pods
    ]


def _state(name: str) -> str:
    return f"{name.removesuffix('.log')}.json"


def _in_cluster(run: PipelineRunResponse, here: Cluster) -> list[PodLog]:
    pods = [pod for job in here.jobs(str(run.id)) for pod in job.pods]
    logs = [(pod, here.log(pod["metadata"]["name"])) for pod in pods]
    return [_log(pod, text) for pod, text in logs if text is not None]


def _log(pod: dict[str, Any], text: str) -> PodLog:
    facts = pod["metadata"]
    step = facts.get("labels", {}).get(STEP_LABEL, ORCHESTRATOR)
    return PodLog(step=step, pod=facts["name"], created=str(facts["creationTimestamp"]), text=text)

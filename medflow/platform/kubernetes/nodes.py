"""Train on several nodes and wait for them: what a step does whose place asks for `nodes`.

The step puts its order into the folder of its checkpoints, starts a TrainJob (`trainjobs`), hands on what the nodes
tell, and takes up what they leave. The objects belong to the step's pod: where that is gone, the cluster removes them;
the next attempt removes what an earlier one has left before it begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from zenml import get_step_context
from zenml.client import Client

from medflow import fit as here
from medflow import ranks
from medflow.checkpoint import Checkpoints
from medflow.config.sections import TrainConfig
from medflow.config.sections.place import StepPlace
from medflow.config.sections.stack import ClusterConfig
from medflow.errors import TrainingError
from medflow.fit import Data, nodes
from medflow.memory import halved
from medflow.models import Network
from medflow.platform import context
from medflow.platform.kubernetes import cluster, keeping, reasons, settings
from medflow.platform.kubernetes.cluster import Observed
from medflow.platform.kubernetes.gathering import Gathered
from medflow.platform.kubernetes.last_words import first_words
from medflow.platform.kubernetes.patience import patiently
from medflow.platform.kubernetes.training_api import COMPLETE, FAILED, TrainingApi
from medflow.platform.kubernetes.trainjobs import Training
from medflow.progress import say
from medflow.records import TrainingLog
from medflow.tracking import Files, Tracker

if TYPE_CHECKING:
    from zenml.models import StepRunResponse

#: What both steps that train call their inputs.
INPUTS = ("train", "val", "pixels")
POLL_SECONDS = 2.0
#: The step tells why it waited before its own deadline ends it.
MARGIN_SECONDS = 20.0
#: JobSet's, on the Job of the nodes: how often all of them have begun again.
ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
HINT = "their logs lie beside those of the run's pods; the same command goes on from the newest checkpoint"


def fit(
    network: Network, data: Data, config: TrainConfig, *, tracker: Tracker, checkpoints: Checkpoints
) -> TrainingLog:
    """``medflow.fit.fit``, on the nodes that the running step's place asks for; here where it asks for none."""
    step = get_step_context().step_run
    asked = step.config.extra.get(settings.NODE)
    if asked is None:
        return here.fit(network, data, config, tracker=tracker, checkpoints=checkpoints)
    place = StepPlace.model_validate(asked)
    order = nodes.Order(
        structure=network.structure,
        tokenizer=data.tokenizer.document if data.tokenizer else None,
        config=config,
        training=checkpoints.training,
        nodes=place.nodes,
        inputs={name: str(step.inputs[name][0].id) for name in INPUTS},
    )
    training = _training(step, place, config.devices // place.nodes)
    best, log = _with_smaller_batches(training, order, network, tracker, checkpoints)
    here.settle(network, best)
    return log


def _with_smaller_batches(
    training: Training, order: nodes.Order, network: Network, tracker: Tracker, checkpoints: Checkpoints
) -> tuple[Mapping[str, Tensor], TrainingLog]:
    """The result. Where memory runs out in one process, all begin again with half the batch."""
    while True:
        try:
            return _run(training, order, network, tracker, checkpoints)
        except ranks.OutOfMemory:
            order = order.model_copy(update={"halvings": halved(order.config, order.halvings)})


def _run(
    training: Training, order: nodes.Order, network: Network, tracker: Tracker, checkpoints: Checkpoints
) -> tuple[Mapping[str, Tensor], TrainingLog]:
    api, files = TrainingApi(cluster.inside(training.cluster.namespace), training), checkpoints.files
    watch = _Watch(api, files, tracker)
    patiently(api.remove, say)
    nodes.clear(files)
    nodes.give(files, order, network)
    say(f"{training.asked.nodes} nodes of {training.processes} processes each train as {training.name}")
    try:
        patiently(api.start, say)
        watch.wait()
        found = nodes.result(files)
    finally:
        watch.keep()
        patiently(api.remove, say)
        nodes.clear(files)
    if found is None:
        raise TrainingError("the nodes ended without a result", hint="look at their logs, beside those of the run")
    return found


class _Watch:
    """One training under way: what its nodes tell and leave, and whether they can go on."""

    def __init__(self, api: TrainingApi, files: Files, tracker: Tracker) -> None:
        self.api, self.files = api, files
        self.gathered = Gathered(api.here)
        self._heard = nodes.Heard(files, tracker)
        self._said: set[str] = set()
        self._until = time.monotonic() + api.seconds_left() - MARGIN_SECONDS

    def wait(self) -> None:
        """Return once all nodes are done. Raises what one of them raised, and TrainingError where they cannot go on."""
        while not patiently(self._done, say):
            time.sleep(POLL_SECONDS)

    def keep(self) -> None:
        """Write logs, pods and events of the nodes beside those of the run's other pods."""
        try:
            self.gathered.forget_reading()
            self._look()
            store = Client().active_stack.artifact_store
            files = context.StoredFiles(store, keeping.folder(store.path, self.api.training.run_id))
            self.gathered.write(files, f"events-{self.api.training.name}.json")
        except Exception as problem:  # the training is over, and its outcome does not hang on this
            say(f"logs and events of the nodes were not kept: {problem}")

    def _done(self) -> bool:
        seen, outcome = self._look(), self.api.outcome()
        for call in self._heard.next():
            if call.metrics:
                self._say_once(f"epoch {call.step}: {_short(call.metrics)}")
        problem = nodes.failure(self.files)
        if problem is not None:
            raise problem
        if outcome == COMPLETE:
            return True
        reason = self._reason(seen, outcome)
        if reason is not None:
            raise TrainingError(f"training on {self.api.training.asked.nodes} nodes ended: {reason}", hint=HINT)
        return False

    def _look(self) -> Observed | None:
        seen = self.api.job()
        if seen is not None:
            self.gathered.note(seen)
            attempt = seen.job["metadata"].get("labels", {}).get(ATTEMPT, "0")
            if attempt != "0":
                self._say_once(f"a node was lost: all of them begin again from the newest checkpoint ({attempt})")
        return seen

    def _reason(self, seen: Observed | None, outcome: str | None) -> str | None:
        """Why the training cannot go on, or None. What it only waits for is said."""
        reason = None if seen is None else reasons.fatal(seen, self.api.expected)
        if reason or outcome == FAILED:
            return reason or self._cause(seen)
        waits = None if seen is None or reasons.over(seen) else reasons.pending(seen)
        if time.monotonic() > self._until:
            return f"not done within the timeout of {self.api.training.asked.timeout} s; {waits or 'it was at work'}"
        if waits:
            self._say_once(f"a node waits: {waits}")
        return None

    def _cause(self, seen: Observed | None) -> str:
        """Why the last of all attempts has failed."""
        last = {pod["metadata"]["name"] for pod in seen.pods} if seen else set()
        logs = self.gathered.logs
        words = first_words({pod: log for pod, log in logs.items() if pod in last}) or first_words(logs)
        return words or (seen and reasons.ended(seen)) or "for no reason that the cluster tells"

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            say(line)


def _short(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss", "val/score"))


def _training(step: StepRunResponse, asked: StepPlace, processes: int) -> Training:
    """The training as this pod can have it run: with its own image, variables and pull secrets."""
    orchestrator: Any = Client().active_stack.orchestrator
    namespace = str(orchestrator.config.kubernetes_namespace)
    pod = cluster.inside(namespace).own_pod()
    [container] = [item for item in pod["spec"]["containers"] if item["name"] == "main"]
    return Training(
        run_id=str(step.pipeline_run_id),
        step=step.name,
        image=container["image"],
        folder=context.checkpoints().uri,
        asked=asked,
        processes=processes,
        cluster=ClusterConfig(
            context="in the cluster",
            namespace=namespace,
            step_account=str(orchestrator.config.step_pod_service_account_name),
            pull_secrets=tuple(item["name"] for item in pod["spec"].get("imagePullSecrets") or ()),
        ),
        environment=tuple(container["env"]),
        owner={"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
    )

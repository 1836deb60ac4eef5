"""A training on two nodes by Kubeflow Trainer: as on one, taken up when a node is lost, ended when one fails."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from clusters import RUNS, Cluster, Servers
from commands import Medflow, Trained, finished, registered, trained, user_of

pytestmark = [pytest.mark.timeout(3600)]

DATASET = "lung_disease"
STEP = "train_vit"
EPOCHS = 8
MODEL = {
    "kind": "timm", "name": "test_vit", "id": "vit", "size": 32, "pretrained": "none", "stats": "unit", "dropout": 0.0,
}  # fmt: skip
#: Without dropout, which each process draws for itself, and without batch norm, which sees a process's share.
SMALL = (
    "source.kind=generated", "source.images=120", f"train.epochs={EPOCHS}", "train.batch_size=12",
    f"models={json.dumps([MODEL])}",
)  # fmt: skip
#: A checkpoint after every step, to be cut off after.
OFTEN = "train.checkpoint_seconds=0"
PLACE = """
stack: {stack}
orchestrator: {{cpu: 0.05, memory: 1Gi, timeout: 3000}}
steps:
  default: {{cpu: 0.1, memory: 2Gi, retries: 2, timeout: 1500, scratch: 2Gi}}
  train: {{nodes: {nodes}, cpu: {cpu}, shm: 64Mi, retries: {retries}, timeout: {timeout}}}
"""
KINDS = "trainjobs,trainingruntimes,jobsets"


@dataclass(frozen=True)
class Trainer:
    """Starts trainings of the same settings, on one node or two."""

    medflow: Medflow

    @contextmanager
    def start(
        self, *settings: str, nodes: int = 2, retries: int = 2, timeout: int = 1500, cpu: float = 0.1
    ) -> Iterator[subprocess.Popen]:
        stack, place = self.medflow.stack, self.medflow.folder / f"place-{time.monotonic_ns()}.yaml"
        place.write_text(PLACE.format(stack=stack, nodes=nodes, retries=retries, timeout=timeout, cpu=cpu))
        with self.medflow.start_training(place, DATASET, (*SMALL, *settings)) as process:
            yield process

    def ends(self, *asked: tuple[tuple[str, ...], dict[str, Any]]) -> list[subprocess.CompletedProcess]:
        """Several trainings side by side: each by its settings and its place."""
        with ExitStack() as all_of_them:
            going = [all_of_them.enter_context(self.start(*settings, **place)) for settings, place in asked]
            return [finished(process) for process in going]


@pytest.fixture(scope="module")
def trainer(
    cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trainer]:
    servers.forget(DATASET)  # whose split would begin where another test's did, in a store that is gone
    folder = tmp_path_factory.mktemp("nodes")
    with registered(user_of(cluster, servers, step_image, folder, f"test-nodes-{int(time.time())}")) as found:
        found.place.write_text(PLACE.format(stack=found.stack, nodes=2, retries=2, timeout=1500, cpu=0.1))
        yield Trainer(found)


@pytest.fixture(scope="module")
def together(trainer: Trainer) -> Trained:
    """Two processes, each on a node of its own; what comes after has its images from the cache."""
    (done,) = trainer.ends((("train.devices=2",), {"nodes": 2}))
    return trained(done)


def test_the_check_finds_kubeflow_trainer(trainer: Trainer) -> None:
    user = trainer.medflow
    done = user("stack", "check", str(user.stack), "--on", str(user.place), "--json")
    assert done.returncode == 0, done.stdout
    found = {item["check"]: item["found"] for item in json.loads(done.stdout)}
    assert found["trainer"] == "trainjobs.trainer.kubeflow.org/v1alpha1, for train"


def test_two_nodes_follow_two_processes_of_one_pod_and_one_process(together: Trained, trainer: Trainer) -> None:
    ends = trainer.ends((("train.devices=2",), {"nodes": 1}), (("train.devices=1",), {"nodes": 1}))
    one_pod, alone = (trained(done) for done in ends)
    assert (together.devices, one_pod.devices, alone.devices) == (2, 2, 1)
    assert len(together.curve) == 2 * EPOCHS  # the recipe has two stages
    for other in (one_pod, alone):
        difference = max(
            abs(mine - its) / its
            for row, theirs in zip(together.curve, other.curve, strict=True)
            for mine, its in zip(row, theirs, strict=True)
        )
        print(f"{other.devices} processes in one pod: losses differ by {difference:.1e}, "
              f"weights {'are the same' if other.weights == together.weights else 'differ'}")  # fmt: skip
        assert difference < 1e-4


def test_logs_of_the_nodes_are_kept_and_nothing_of_them_is_left(together: Trained, trainer: Trainer) -> None:
    kept = trainer.medflow.objects(f"runs/{together.run_id}/pods/")
    logs = sorted(name for name in kept if name.startswith("medflow-") and name.endswith(".log"))
    assert [name.split("-node-0-")[1][0] for name in logs] == ["0", "1"] and all(kept[name] for name in logs)
    said = trainer.medflow.read(f"runs/{together.run_id}/pods/{logs[0]}").decode()
    assert f"epoch {EPOCHS} of {EPOCHS}" in said and "accuracy" in said
    pods = [json.loads(trainer.medflow.read(f"runs/{together.run_id}/pods/{name[:-4]}.json")) for name in logs]
    assert all(pod["status"]["phase"] == "Succeeded" for pod in pods)
    assert not any("env" in container for pod in pods for container in pod["spec"]["containers"])
    assert nothing_left(trainer, together.run_id)
    assert not trainer.medflow.objects("checkpoints/"), "neither checkpoints nor an order"


def nothing_left(trainer: Trainer, run_id: str) -> bool:
    """No object of a run's nodes is in the cluster any more."""
    found = trainer.medflow.cluster.json("-n", RUNS, "get", f"{KINDS},pods", "-l", f"medflow.dev/run={run_id}")
    return found["items"] == []


def test_only_the_step_that_starts_nodes_has_an_account_with_rights(together: Trained, trainer: Trainer) -> None:
    pods = trainer.medflow.pods(together.run_id)
    assert pods[STEP][0]["spec"]["serviceAccountName"] == "medflow-trainer"
    assert {pod["spec"]["serviceAccountName"] for step in pods if step not in ("", STEP) for pod in pods[step]} == {
        "medflow-step"
    }
    pod = trainer.medflow.objects(f"runs/{together.run_id}/pods/")
    node = next(name for name in pod if name.startswith("medflow-") and name.endswith(".json"))
    kept = json.loads(trainer.medflow.read(f"runs/{together.run_id}/pods/{node}"))
    assert kept["spec"]["serviceAccountName"] == "medflow-step"


def test_a_node_and_then_the_step_are_deleted_in_mid_training_and_the_weights_are_the_same(
    together: Trained, trainer: Trainer
) -> None:
    """A lost node begins again, under the same step; with the step, its nodes begin anew."""
    with trainer.start("train.devices=2", OFTEN, nodes=2) as process:
        node = await_node(trainer, 1)
        step = trainer.medflow.running(STEP)
        assert step is not None
        before = checkpoints(trainer)
        delete(trainer, node)
        assert await_node(trainer, 1, beyond=before) != node
        assert trainer.medflow.running(STEP) == step
        delete(trainer, step)
        told = trained(finished(process))
    assert "(attempt 2)" in told.said and "(attempt 3)" not in told.said
    logs = [name for name in trainer.medflow.objects(f"runs/{told.run_id}/pods/") if name.endswith(".log")]
    said = [trainer.medflow.read(f"runs/{told.run_id}/pods/{name}").decode() for name in logs if "-node-0-0" in name]
    assert any("training goes on in stage" in text for text in said)
    assert told.curve == together.curve and told.weights == together.weights
    assert nothing_left(trainer, told.run_id)


def delete(trainer: Trainer, pod: str) -> None:
    trainer.medflow.cluster.kubectl("-n", RUNS, "delete", "pod", pod, "--wait=false")


def checkpoints(trainer: Trainer) -> frozenset[str]:
    names = trainer.medflow.objects("checkpoints/")
    return frozenset(name for name in names if name.endswith(".safetensors") and "nodes-" not in name)


def await_node(trainer: Trainer, rank: int, beyond: frozenset[str] = frozenset()) -> str:
    """The name of a node's pod as soon as the store has a checkpoint, another one than those ``beyond``."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        if checkpoints(trainer) - beyond:
            items = trainer.medflow.cluster.json("-n", RUNS, "get", "pods", "-l", "medflow.dev/step=" + STEP)["items"]
            label = "batch.kubernetes.io/job-completion-index"
            found = [
                pod["metadata"]
                for pod in items
                if pod["metadata"]["labels"].get(label) == str(rank) and "deletionTimestamp" not in pod["metadata"]
            ]
            if found:
                return str(found[0]["name"])
        time.sleep(0.3)
    raise AssertionError("no checkpoint came")


FALL = """
import os, pathlib, signal
ranks = (path for path in pathlib.Path("/proc").glob("[0-9]*") if b"LOCAL_RANK=" in (path / "environ").read_bytes())
os.kill(next(int(path.name) for path in ranks if path.name != str(os.getpid())), signal.SIGSEGV)
"""


def test_a_node_that_falls_ends_the_training_with_its_reason(trainer: Trainer) -> None:
    with trainer.start("train.devices=2", "train.seed=5", OFTEN, nodes=2, retries=0) as process:
        pod = await_node(trainer, 1)
        killed = trainer.medflow.cluster.run("kubectl", "-n", RUNS, "exec", pod, "--", "python", "-c", FALL)
        assert killed.returncode == 0, killed.stderr
        done = finished(process)
    assert done.returncode != 0
    assert "its process was killed: Signal 11 (SIGSEGV) received" in done.stderr and f"(pod {pod})" in done.stderr
    run_id = done.stderr.partition(" run ")[2].split()[0]
    assert nothing_left(trainer, run_id)


@pytest.fixture(scope="module")
def failed(together: Trained, trainer: Trainer) -> tuple[subprocess.CompletedProcess, subprocess.CompletedProcess]:
    """A training whose nodes raise an error, and one whose nodes find no machine; the latter waits beside the other."""
    raising = ("train.devices=2", "train.lr=1e38", "train.clip=0")
    raised, waited = trainer.ends(
        (raising, {"nodes": 2}), (("train.devices=2",), {"nodes": 2, "cpu": 500, "timeout": 60})
    )
    return raised, waited


def test_what_a_node_raises_is_what_the_step_says(failed: tuple[subprocess.CompletedProcess, ...]) -> None:
    done, _ = failed
    assert done.returncode != 0
    assert "the loss is nan in stage" in done.stderr and "lower train.lr" in done.stderr
    assert "(attempt 2)" not in done.stderr


def test_nodes_that_no_machine_holds_are_told_and_end_at_the_deadline(
    failed: tuple[subprocess.CompletedProcess, ...],
) -> None:
    _, done = failed
    assert done.returncode != 0
    assert "not done within the timeout of 60 s" in done.stderr
    assert "exceeded quota" in done.stderr or "unschedulable" in done.stderr


def test_stopping_a_run_takes_its_nodes_away(trainer: Trainer) -> None:
    with trainer.start("train.devices=2", "train.epochs=200", OFTEN, nodes=2) as process:
        await_node(trainer, 1)
        [job] = trainer.medflow.cluster.json("-n", RUNS, "get", "trainjobs", "-l", f"medflow.dev/step={STEP}")["items"]
        run_id = job["metadata"]["labels"]["medflow.dev/run"]
        done = trainer.medflow("stack", "stop", str(trainer.medflow.stack), run_id)
        assert done.returncode == 0, done.stderr
        assert finished(process).returncode != 0
    listed = trainer.medflow("runs", "--on", str(trainer.medflow.place), "--json")
    assert [item["status"] for item in json.loads(listed.stdout) if item["run_id"] == run_id] == ["stopped"]
    until = time.monotonic() + 120
    while not nothing_left(trainer, run_id):
        assert time.monotonic() < until, "the nodes are still there"
        time.sleep(1)

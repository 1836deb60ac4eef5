"""medflow's command line as a user of a cluster types it, on the smallest pipeline, and what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clusters import BUCKET, ROOT, RUNS, Cluster, Servers

SMALL = (
    "source.images=72", "models.0.size=32", "models.0.channels=[8,16]", "models.0.label_hidden=[16]",
    "models.0.label_dropout=[0.1,0.1]", "train.epochs=1", "train.batch_size=16", "evaluate.resamples=100",
    "promote.resamples=100", "promote.floors=[]", "prune.enabled=false", "quantize.enabled=false",
)  # fmt: skip

TRAIN = "train_monai_unet"
PART = str(Path(__file__).with_name("part_of_run.py"))
PLACE = """
stack: {stack}
parallel: 3
orchestrator: {{cpu: 0.05, memory: 1Gi, timeout: 3000, priority: medflow-orchestrator}}
steps:
  default: {{cpu: 0.1, memory: 2Gi, retries: 2, timeout: 1500, scratch: 2Gi, priority: medflow-step}}
  train: {{memory: {memory}, shm: 64Mi, timeout: {timeout}, retries: 3}}
  split: {{node_selector: {split_on}, timeout: {timeout}}}
"""
STACK = """
server: ${{ZENML_STORE_URL}}
cluster: {{context: client, namespace: {namespace}}}
image: {image}
registry: {registry}
store:
  uri: s3://{bucket}/{folder}
  endpoint: ${{AWS_ENDPOINT_URL}}
mlflow:
  uri: ${{MLFLOW_TRACKING_URI}}
"""


@dataclass(frozen=True)
class Medflow:
    """The command line on a machine outside the cluster, with a state folder of its own."""

    folder: Path
    environment: dict[str, str]
    cluster: Cluster
    store_folder: str

    def __call__(self, *words: str) -> subprocess.CompletedProcess:
        with self.start(*words) as process:
            output, errors = process.communicate(timeout=3000)
            return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    @contextmanager
    def start(self, *words: str) -> Iterator[subprocess.Popen]:
        """A command that goes on in the block; where a test fails there, it is stopped."""
        with self._python("-m", "medflow.cli", *words) as process:
            yield process

    @contextmanager
    def start_training(self, place: Path | str, dataset: str, settings: Iterable[str]) -> Iterator[subprocess.Popen]:
        """Likewise the steps of a run up to its models; `trained` reads what it says in the end."""
        with self._python(PART, "training", str(place), dataset, json.dumps(list(settings))) as process:
            yield process

    def read_data(self, dataset: str, settings: Iterable[str]) -> Data:
        """The first steps of a run, up to the split."""
        with self._python(PART, "data", str(self.place), dataset, json.dumps(list(settings))) as process:
            return Data(**told(finished(process)))

    @contextmanager
    def _python(self, *words: str) -> Iterator[subprocess.Popen]:
        # What a shell starts in the background ignores Ctrl-C, and hands that on.
        command = ["env", "--default-signal=INT", sys.executable, *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                yield process
            except BaseException:
                process.send_signal(signal.SIGINT)
                raise

    def elsewhere(self, name: str) -> Medflow:
        """The same machine with another state folder, and nothing of the cluster in its environment."""
        kept = {key: value for key, value in self.environment.items() if not key.startswith(("ZENML_", "MLFLOW_"))}
        return replace(self, environment={**kept, "MEDFLOW_HOME": str(self.folder / name)})

    @property
    def stack(self) -> Path:
        return self.folder / f"{self.store_folder}.yaml"

    @property
    def place(self) -> Path:
        return self.folder / "place.yaml"

    def words(self, *settings: str, memory: str = "3Gi", timeout: int = 1500, split_on: str = "{}") -> tuple[str, ...]:
        """A run's command line."""
        self.write_place(memory=memory, timeout=timeout, split_on=split_on)
        return ("run", "phantom", *SMALL, *settings, "--on", str(self.place), "--json")

    def write_place(self, *, memory: str = "3Gi", timeout: int = 1500, split_on: str = "{}") -> None:
        self.place.write_text(PLACE.format(stack=self.stack, memory=memory, timeout=timeout, split_on=split_on))

    @contextmanager
    def other_stack(self, old: str, new: str) -> Iterator[None]:
        """The stack's YAML with a change, in the block."""
        before = self.stack.read_text()
        assert old in before
        self.stack.write_text(before.replace(old, new))
        try:
            yield
        finally:
            self.stack.write_text(before)

    def pods(self, run_id: str) -> dict[str, list[dict[str, Any]]]:
        """The pods of a run by step; the orchestrator's under an empty name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for pod in self.cluster.json("-n", RUNS, "get", "pods", "-l", f"run_id={run_id}")["items"]:
            found.setdefault(pod["metadata"]["labels"].get("step_name", ""), []).append(pod)
        return found

    def objects(self, prefix: str) -> dict[str, int]:
        """Names and sizes below a folder of this test's part of the store."""
        below = f"{self.store_folder}/{prefix}"
        pages = self.cluster.store.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=below)
        items = [item for page in pages for item in page.get("Contents", [])]
        return {item["Key"].removeprefix(below): item["Size"] for item in items}

    def running(self, step: str) -> str | None:
        """The name of a step's pod that runs now, if one does."""
        items = self.cluster.json("-n", RUNS, "get", "pods", "-l", f"step_name={step}")["items"]
        alive = [
            item
            for item in items
            if item["status"]["phase"] == "Running" and "deletionTimestamp" not in item["metadata"]
        ]
        return str(alive[-1]["metadata"]["name"]) if alive else None

    def kept_logs(self, run_id: str, step: str) -> list[str]:
        """What the pods of a step said, from the artifact store."""
        prefix = f"runs/{run_id}/pods/"
        names = [name for name in self.objects(prefix) if name.endswith(".log") and step.replace("_", "-") in name]
        return [self.read(f"{prefix}{name}").decode() for name in names]

    def read(self, name: str) -> bytes:
        found = self.cluster.store.client.get_object(Bucket=BUCKET, Key=f"{self.store_folder}/{name}")
        content: bytes = found["Body"].read()
        return content


def user_of(cluster: Cluster, servers: Servers, image: str, folder: Path, part: str) -> Medflow:
    """The command line with a stack's YAML of its own and a folder of its own in the store."""
    found = Medflow(folder, environment_of(cluster, servers, folder), cluster, part)
    found.stack.write_text(
        STACK.format(namespace=RUNS, image=image, registry=cluster.registry, bucket=BUCKET, folder=part)
    )
    return found


@contextmanager
def registered(medflow: Medflow) -> Iterator[Medflow]:
    """With its stack registered; in the end neither stack nor objects are left."""
    done = medflow("stack", "apply", str(medflow.stack), "--json")
    assert done.returncode == 0, done.stderr
    yield medflow
    assert medflow("stack", "delete", str(medflow.stack)).returncode == 0
    store = medflow.cluster.store.client
    for name in medflow.objects(""):
        store.delete_object(Bucket=BUCKET, Key=f"{medflow.store_folder}/{name}")


def environment_of(cluster: Cluster, servers: Servers, folder: Path) -> dict[str, str]:
    """What a user has exported who has no rights but medflow-client's."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(cluster.kubeconfig_of("medflow-client"))
    # Where several processes test, each computes with one thread: nothing that a user has exported, nor the pods have.
    exported = {name: value for name, value in cluster.environment.items() if name != "OMP_NUM_THREADS"}
    return {
        **exported,
        "KUBECONFIG": str(kubeconfig),
        **cluster.store.environment,
        "PYTHONPATH": str(ROOT),
        "MEDFLOW_HOME": str(folder / "home"),
        "ZENML_STORE_URL": servers.zenml,
        "ZENML_STORE_USERNAME": servers.user,
        "ZENML_STORE_PASSWORD": servers.password,
        "MLFLOW_TRACKING_URI": servers.mlflow,
    }


def outcome_of(done: subprocess.CompletedProcess) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@dataclass(frozen=True)
class Data:
    """What came of the first steps of a run."""

    run_id: str
    digests: dict[str, str]
    """Content of what `ingest` made."""
    ran: list[str]
    """The steps that did not come from the cache."""
    said: str


@dataclass(frozen=True)
class Trained(Data):
    """What came of the steps up to the models; of the first model."""

    curve: list[list[float]]
    weights: str
    devices: int
    threads: int


def trained(done: subprocess.CompletedProcess) -> Trained:
    return Trained(**told(done))


def told(done: subprocess.CompletedProcess) -> dict[str, Any]:
    """What a part of a run says of itself."""
    assert done.returncode == 0 and "TOLD " in done.stdout, done.stderr[-4000:]
    return {**json.loads(done.stdout.partition("TOLD ")[2]), "said": done.stderr}


def run_id_of(errors: str) -> str:
    return errors.partition(" run ")[2].split()[0]


def finished(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """A command that was started, at its end."""
    output, errors = process.communicate(timeout=3000)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

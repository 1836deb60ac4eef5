"""A dataset's whole pipeline in pods: artifacts in S3, metrics in MLflow, cached hits, resumed when killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from clusters import BUCKET, ROOT, RUNS, Cluster, Servers
from mlflow import MlflowClient

pytestmark = [pytest.mark.timeout(3600)]

SMALL = (
    "source.images=72", "models.0.size=32", "models.0.channels=[8,16]", "models.0.label_hidden=[16]",
    "models.0.label_dropout=[0.1,0.1]", "train.epochs=1", "train.batch_size=16", "evaluate.resamples=100",
    "promote.resamples=100", "promote.floors=[]", "prune.enabled=false", "quantize.enabled=false",
)  # fmt: skip
UNCACHED = {"resolve", "incumbent", "promote", "record"}
TRAIN = "train_monai_unet"
PLACE = """
stack: {stack}
parallel: 3
orchestrator: {{cpu: 0.05, memory: 1Gi, timeout: 3000}}
steps:
  default: {{cpu: 0.1, memory: 2Gi, retries: 2, timeout: 1500, scratch: 2Gi}}
  train: {{memory: {memory}, shm: 64Mi, timeout: {timeout}, retries: 3}}
  split: {{node_selector: {split_on}, timeout: {timeout}}}
"""
STACK = """
server: ${{ZENML_STORE_URL}}
cluster: {{context: {context}, namespace: {namespace}}}
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

    def start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "medflow.cli", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def elsewhere(self, name: str) -> Medflow:
        """The same machine with another state folder, and nothing of the cluster in its environment."""
        kept = {key: value for key, value in self.environment.items() if not key.startswith(("ZENML_", "MLFLOW_"))}
        return replace(self, environment={**kept, "MEDFLOW_HOME": str(self.folder / name)})

    def words(self, *settings: str, memory: str = "3Gi", timeout: int = 1500, split_on: str = "{}") -> tuple[str, ...]:
        """A run's command line."""
        place = self.folder / "place.yaml"
        stack = self.folder / "runs.yaml"
        place.write_text(PLACE.format(stack=stack, memory=memory, timeout=timeout, split_on=split_on))
        return ("run", "phantom", *SMALL, *settings, "--on", str(place), "--json")

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


@pytest.fixture(scope="module")
def medflow(cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory) -> Medflow:
    folder = tmp_path_factory.mktemp("runs")
    part = f"test-{int(time.time())}"
    (folder / "runs.yaml").write_text(
        STACK.format(
            context=cluster.context,
            namespace=RUNS,
            image=step_image,
            registry=cluster.registry,
            bucket=BUCKET,
            folder=part,
        )
    )
    return Medflow(folder, environment_of(cluster, servers, folder), cluster, part)


def environment_of(cluster: Cluster, servers: Servers, folder: Path) -> dict[str, str]:
    """What a user has exported."""
    return {
        **cluster.environment,
        **cluster.store.environment,
        "PYTHONPATH": str(ROOT),
        "MEDFLOW_HOME": str(folder / "home"),
        "ZENML_STORE_URL": servers.zenml,
        "ZENML_STORE_USERNAME": servers.user,
        "ZENML_STORE_PASSWORD": servers.password,
        "MLFLOW_TRACKING_URI": servers.mlflow,
    }


@pytest.fixture(scope="module")
def applied(medflow: Medflow, servers: Servers) -> Medflow:
    servers.forget("phantom")
    done = medflow("stack", "apply", str(medflow.folder / "runs.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    return medflow


@pytest.fixture(scope="module")
def first(applied: Medflow) -> dict[str, Any]:
    return outcome_of(applied(*applied.words()))


def outcome_of(done: subprocess.CompletedProcess) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def run_id_of(errors: str) -> str:
    return errors.partition(" run ")[2].split()[0]


def test_a_second_apply_changes_nothing(applied: Medflow) -> None:
    done = applied("stack", "apply", str(applied.folder / "runs.yaml"), "--json")
    assert {item["outcome"] for item in json.loads(done.stdout)} == {"unchanged"}


def test_the_check_finds_nothing_amiss(applied: Medflow) -> None:
    place = applied.words()[-2]
    done = applied("stack", "check", str(applied.folder / "runs.yaml"), "--on", place, "--json")
    assert done.returncode == 0, done.stdout
    assert {"store, from a pod", "mlflow, from a pod"} <= {item["check"] for item in json.loads(done.stdout)}


def test_the_whole_pipeline_runs_in_pods(first: dict[str, Any], applied: Medflow) -> None:
    assert first["status"] == "completed"
    assert first["metrics"] and first["model"].startswith("phantom@")
    assert not any(step["cached"] for step in first["steps"])
    pods = applied.pods(first["run_id"])
    assert {name for name in pods if name} == {step["name"] for step in first["steps"]}
    spec = pods[TRAIN][0]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "3Gi"}
    assert spec["serviceAccountName"] == "medflow-step"


def test_metrics_are_in_the_mlflow_server(first: dict[str, Any], servers: Servers) -> None:
    client = MlflowClient(tracking_uri=servers.mlflow)
    experiment = client.get_experiment_by_name("phantom")
    assert experiment is not None
    query = f"tags.`zenml.pipeline_run_id` = '{first['run_id']}'"
    found = client.search_runs([experiment.experiment_id], query)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert any(run.data.metrics for run in found)


def test_logs_and_events_of_every_pod_are_kept(first: dict[str, Any], applied: Medflow) -> None:
    kept = applied.objects(f"runs/{first['run_id']}/pods/")
    names = [pod["metadata"]["name"] for pods in applied.pods(first["run_id"]).values() for pod in pods]
    assert names
    assert all(f"{name}.log" in kept and kept.get(f"{name}.json", 0) > 0 for name in names)
    assert kept["events.json"] > len("[]")


def test_the_token_is_gone_with_the_run(first: dict[str, Any], cluster: Cluster) -> None:
    names = [item["metadata"]["name"] for item in cluster.json("-n", RUNS, "get", "secrets")["items"]]
    assert not [name for name in names if name.startswith("zenml-token-")]


def test_a_second_run_starts_only_the_uncached_steps(first: dict[str, Any], applied: Medflow) -> None:
    started = time.monotonic()
    second = outcome_of(applied(*applied.words()))
    print(f"second run: {time.monotonic() - started:.0f} s")
    assert {step["name"] for step in second["steps"] if not step["cached"]} == UNCACHED
    assert {name for name in applied.pods(second["run_id"]) if name} == UNCACHED


def test_a_damaged_artifact_is_no_hit_in_the_cluster(first: dict[str, Any], applied: Medflow) -> None:
    """The check of hits runs in the orchestrator's pod: a step whose stored output lost a file runs again."""
    key = next(key for key in applied.objects("normalize/") if key.endswith("index.json"))
    store = applied.cluster.store.client
    store.delete_object(Bucket=BUCKET, Key=f"{applied.store_folder}/normalize/{key}")
    again = outcome_of(applied(*applied.words()))
    assert "normalize" in {step["name"] for step in again["steps"] if not step["cached"]}


def test_a_training_pod_that_is_deleted_is_retried_and_ends_with_the_same_weights(
    first: dict[str, Any], applied: Medflow
) -> None:
    settings = ("train.epochs=4", "train.checkpoint_seconds=0")
    with applied.start(*applied.words(*settings, "train.seed=7")) as process:
        pod = await_checkpoint(applied)
        applied.cluster.kubectl("-n", RUNS, "delete", "pod", pod, "--wait=false")
        output, errors = process.communicate(timeout=3000)
    killed = outcome_of(subprocess.CompletedProcess(process.args, process.returncode, output, errors))
    assert "(attempt 2)" in errors
    assert "training goes on in stage" in "".join(logs_of(applied, killed["run_id"], TRAIN))
    assert not applied.objects("checkpoints/"), "a finished step leaves no checkpoint"
    alone = applied.elsewhere("alone")("run", "phantom", *SMALL, *settings, "train.seed=7", "--json")
    digests = [
        weights_of(applied, killed["run_id"], on=str(applied.folder / "place.yaml")),
        weights_of(applied.elsewhere("alone"), outcome_of(alone)["run_id"], on="local"),
    ]
    assert digests[0] == digests[1]


WEIGHTS = """
import sys
from medflow.commands.place import go
go(sys.argv[1])
from medflow.platform import stack
step = stack.client().get_pipeline_run(sys.argv[2]).steps["train_monai_unet"]
print("digest", step.outputs["trained"][0].load().card.weights_digest)
"""


def weights_of(medflow: Medflow, run_id: str, *, on: str) -> str:
    command = [sys.executable, "-c", WEIGHTS, on, run_id]
    done = subprocess.run(command, env=medflow.environment, cwd=medflow.folder, capture_output=True, text=True)
    assert "digest " in done.stdout, done.stderr
    return done.stdout.partition("digest ")[2].strip()


def await_checkpoint(medflow: Medflow) -> str:
    """The name of the training pod as soon as its first checkpoint is in the store."""
    until = time.monotonic() + 1500
    while time.monotonic() < until:
        if medflow.objects("checkpoints/"):
            items = medflow.cluster.json("-n", RUNS, "get", "pods", "-l", f"step_name={TRAIN}")["items"]
            running = [item for item in items if item["status"]["phase"] == "Running"]
            if running:
                return str(running[-1]["metadata"]["name"])
        time.sleep(0.5)
    raise AssertionError("no checkpoint came")


def logs_of(medflow: Medflow, run_id: str, step: str) -> list[str]:
    prefix = f"runs/{run_id}/pods/"
    names = [name for name in medflow.objects(prefix) if name.endswith(".log") and step.replace("_", "-") in name]
    read = medflow.cluster.store.client.get_object
    return [read(Bucket=BUCKET, Key=f"{medflow.store_folder}/{prefix}{name}")["Body"].read().decode() for name in names]


def test_out_of_memory_is_told_with_its_limit_and_not_retried(first: dict[str, Any], applied: Medflow) -> None:
    done = applied(*applied.words("train.seed=11", memory="200Mi"))
    assert done.returncode != 0
    assert "OOMKilled" in done.stderr and "200Mi" in done.stderr
    assert len([name for name in applied.objects(f"runs/{run_id_of(done.stderr)}/pods/") if "train" in name]) == 2


def test_a_step_that_no_node_takes_ends_at_its_deadline_with_the_scheduler_s_words(
    first: dict[str, Any], applied: Medflow
) -> None:
    done = applied(*applied.words("split.seed=3", timeout=40, split_on="{disk: nowhere}"))
    assert done.returncode != 0
    assert "split waits: unschedulable" in done.stderr
    assert "not done within its timeout of 40 s; it waited: unschedulable" in done.stderr.splitlines()[-2]


def test_an_image_that_is_not_there_is_told(first: dict[str, Any], applied: Medflow) -> None:
    path = applied.folder / "runs.yaml"
    before = path.read_text()
    path.write_text(before.replace("medflow-step:", "medflow-step:absent-"))
    try:
        done = applied(*applied.words())
    finally:
        path.write_text(before)
    assert done.returncode != 0
    assert "ImagePullBackOff" in done.stderr and "medflow-step:absent-" in done.stderr

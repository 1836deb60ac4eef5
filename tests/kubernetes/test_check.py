"""`medflow stack check` on a real cluster: twenty-one things planted wrong, one by one, each found with a remedy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import BUCKET, RUNS, Cluster, Servers
from commands import Medflow, environment_of
from forwarding import Forwarder

pytestmark = [pytest.mark.timeout(1800)]
STACK = """
server: ${{ZENML_STORE_URL}}
cluster:
  context: client
  namespace: {namespace}
image: {image}
registry: {registry}
store:
  uri: s3://{bucket}/check
  endpoint: ${{AWS_ENDPOINT_URL}}
mlflow:
  uri: ${{MLFLOW_TRACKING_URI}}
"""
PLACE = """
stack: check
orchestrator: {cpu: 0.05, memory: 256Mi}
steps:
  default: {cpu: 0.05, memory: 512Mi, scratch: 1Gi}
  train: {shm: 64Mi}
"""
Change = Callable[[Cluster], AbstractContextManager[None]]


@dataclass(frozen=True)
class Planted:
    """One thing that is wrong: in the stack's YAML, in the place's, in the environment, or in the cluster."""

    check: str
    words: str
    stack: tuple[str, str] = ("", "")
    place: tuple[str, str] = ("", "")
    variable: tuple[str, str] = ("", "")
    change: Change = lambda cluster: nullcontext()
    only_here: str = ""
    """The variable of a server that gets an address which this machine reaches, and no pod."""


@contextmanager
def tainted(cluster: Cluster) -> Iterator[None]:
    (node,) = [item["metadata"]["name"] for item in cluster.json("get", "nodes")["items"]][:1]
    cluster.kubectl("taint", "node", node, "medflow-test=planted:NoSchedule")
    try:
        yield
    finally:
        cluster.kubectl("taint", "node", node, "medflow-test=planted:NoSchedule-")


@contextmanager
def full_quota(cluster: Cluster) -> Iterator[None]:
    cluster.kubectl("-n", RUNS, "create", "quota", "planted", "--hard=requests.memory=300Mi")
    try:
        yield
    finally:
        cluster.kubectl("-n", RUNS, "delete", "quota", "planted")


TRAIN = "train: {shm: 64Mi}"
PLANTED = {
    "server": Planted("server", "http://127.0.0.1:9", variable=("ZENML_STORE_URL", "http://127.0.0.1:9")),
    "stack not applied": Planted("stack", "not as the YAML says: artifact_store", stack=("/check", "/elsewhere")),
    "bucket": Planted("store", "s3://medflow-absent", stack=("s3://medflow/", "s3://medflow-absent/")),
    "store's key": Planted("store", "s3://medflow/check", variable=("AWS_SECRET_ACCESS_KEY", "wrong")),
    "context": Planted("context", "'planted'", stack=("context: ", "context: planted #")),
    "namespace": Planted(
        "namespace", "namespace planted: 403 Forbidden", stack=("namespace: medflow", "namespace: planted")
    ),
    "account": Planted("accounts", "planted-step", stack=("image:", "  step_account: planted-step\nimage:")),
    "image": Planted("image", "planted-", stack=("medflow-step:", "medflow-step:planted-")),
    "labels": Planted("nodes", "has the labels", place=(TRAIN, "train: {node_selector: {disk: planted}}")),
    "taint": Planted("taints", "medflow-test=planted:NoSchedule", change=tainted),
    "GPU": Planted("gpu", "at most 0 allocatable", place=(TRAIN, "train: {gpu: 1}")),
    "size": Planted("nodes", "more than any node", place=(TRAIN, "train: {memory: 900Gi}")),
    "quota": Planted("quota", "the quota planted leaves", change=full_quota),
    "shm": Planted("shm", "not smaller than the memory limit", place=(TRAIN, "train: {shm: 1Gi}")),
    "secret": Planted("secrets", "planted-secret", place=(TRAIN, "train: {secrets: [planted-secret]}")),
    "claim": Planted(
        "volumes", "no claim planted-claim", place=(TRAIN, "train: {volumes: [{claim: planted-claim, path: /images}]}")
    ),
    "priority": Planted("priority", "no priority class planted", place=(TRAIN, "train: {priority: planted}")),
    "runtime": Planted("runtime", "no runtime class planted", place=(TRAIN, "train: {runtime_class: planted}")),
    "mlflow": Planted("mlflow, from a pod", "refused", variable=("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")),
    "server's address": Planted("server, from a pod", "http://127.0.0.1:", only_here="ZENML_STORE_URL"),
    "store's address": Planted("store, from a pod", "http://127.0.0.1:", only_here="AWS_ENDPOINT_URL"),
}


@pytest.fixture(scope="module")
def checked(
    cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Medflow]:
    folder = tmp_path_factory.mktemp("check")
    text = STACK.format(namespace=RUNS, image=step_image, registry=cluster.registry, bucket=BUCKET)
    (folder / "check.yaml").write_text(text)
    (folder / "place.yaml").write_text(PLACE)
    found = Medflow(folder, environment_of(cluster, servers, folder), cluster, "check")
    done = found("stack", "apply", str(folder / "check.yaml"))
    assert done.returncode == 0, done.stderr
    yield found
    assert found("stack", "delete", str(folder / "check.yaml")).returncode == 0


def check(medflow: Medflow, **variables: str) -> subprocess.CompletedProcess:
    stack, place = (str(medflow.folder / name) for name in ("check.yaml", "place.yaml"))
    words = ("stack", "check", stack, "--on", place, "--json")
    return Medflow(medflow.folder, {**medflow.environment, **variables}, medflow.cluster, "check")(*words)


@contextmanager
def changed(path: Path, change: tuple[str, str]) -> Iterator[None]:
    before = path.read_text()
    assert change[0] in before
    path.write_text(before.replace(*change) if change[0] else before)
    try:
        yield
    finally:
        path.write_text(before)


def test_nothing_is_amiss_where_nothing_was_planted(checked: Medflow) -> None:
    done = check(checked)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_misconfiguration_is_a_finding_with_a_remedy(name: str, checked: Medflow) -> None:
    planted = PLANTED[name]
    variables = dict([planted.variable]) if planted.variable[0] else {}
    folder = checked.folder
    with ExitStack() as ways:
        if planted.only_here:
            way = ways.enter_context(Forwarder(checked.environment[planted.only_here], at="127.0.0.1"))
            variables[planted.only_here] = way.url
        ways.enter_context(changed(folder / "check.yaml", planted.stack))
        ways.enter_context(changed(folder / "place.yaml", planted.place))
        ways.enter_context(planted.change(checked.cluster))
        done = check(checked, **variables)
    assert done.returncode == 9, done.stderr
    amiss = [item for item in json.loads(done.stdout) if not item["ok"]]
    told = [item for item in amiss if item["check"] == planted.check]
    assert told and planted.words in told[0]["found"], amiss
    assert all(item["remedy"] for item in amiss)

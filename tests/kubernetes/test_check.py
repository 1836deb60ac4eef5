"""`medflow stack check` on a real cluster: twenty-one things planted wrong, each found with a remedy.

Each is planted by itself. Looks at what is wrong in a file, an address or a password go on side by side.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

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
    change: Change | None = None
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

NOTHING = Planted("", "")


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


@pytest.fixture(scope="module")
def looks(checked: Medflow) -> Iterator[dict[str, Future[subprocess.CompletedProcess]]]:
    """What `stack check` says where nothing is planted and of each thing that leaves the cluster as it is.

    A command keeps one core busy, and there are two.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        here = {name: planted for name, planted in {"": NOTHING, **PLANTED}.items() if planted.change is None}
        yield {name: pool.submit(look, checked, planted, f"{at}") for at, (name, planted) in enumerate(here.items())}


def look(medflow: Medflow, planted: Planted, folder: str) -> subprocess.CompletedProcess:
    """In a folder of its own, with a state folder of its own."""
    own = medflow.folder / folder
    own.mkdir()
    stack, place = own / "check.yaml", own / "place.yaml"
    stack.write_text(swapped((medflow.folder / "check.yaml").read_text(), planted.stack))
    place.write_text(swapped(PLACE, planted.place))
    variables = {"MEDFLOW_HOME": str(own / "home")} | (dict([planted.variable]) if planted.variable[0] else {})
    with ExitStack() as ways:
        if planted.only_here:
            way = ways.enter_context(Forwarder(medflow.environment[planted.only_here], at="127.0.0.1"))
            variables[planted.only_here] = way.url
        there = replace(medflow, environment={**medflow.environment, **variables})
        return there("stack", "check", str(stack), "--on", str(place), "--json")


def swapped(text: str, change: tuple[str, str]) -> str:
    assert change[0] in text
    return text.replace(*change) if change[0] else text


def test_nothing_is_amiss_where_nothing_was_planted(looks: dict[str, Future[subprocess.CompletedProcess]]) -> None:
    done = looks[""].result()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(PLANTED, key=lambda name: PLANTED[name].change is not None))
def test_each_planted_misconfiguration_is_a_finding_with_a_remedy(
    name: str, checked: Medflow, looks: dict[str, Future[subprocess.CompletedProcess]]
) -> None:
    planted = PLANTED[name]
    if planted.change is None:
        done = looks[name].result()
    else:
        wait(looks.values())  # no other look may meet what the cluster has now
        with planted.change(checked.cluster):
            done = look(checked, planted, name)
    assert done.returncode == 9, done.stderr
    amiss = [item for item in json.loads(done.stdout) if not item["ok"]]
    told = [item for item in amiss if item["check"] == planted.check]
    assert told and planted.words in told[0]["found"], amiss
    assert all(item["remedy"] for item in amiss)

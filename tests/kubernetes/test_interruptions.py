"""What may happen to a cluster in the middle of a run, and does not cost the run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from clusters import PLATFORM, RUNS, Cluster, Servers
from commands import SMALL, TRAIN, Medflow, finished, trained
from forwarding import Forwarder

pytestmark = [pytest.mark.timeout(3600)]
LONG = ("train.epochs=150", "train.patience=150", "train.checkpoint_seconds=0")
LONGEST = ("train.epochs=500", "train.patience=500", "train.checkpoint_seconds=0")
OUTAGE_SECONDS = 60


def delete(cluster: Cluster, pod: str) -> None:
    cluster.kubectl("-n", RUNS, "delete", "pod", pod, "--wait=false")


def evict(cluster: Cluster, pod: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": RUNS}}
    cluster.kubectl(
        "create", "--raw", f"/api/v1/namespaces/{RUNS}/pods/{pod}/eviction", "-f", "-", stdin=json.dumps(eviction)
    )


def kill(cluster: Cluster, pod: str) -> None:
    """SIGKILL to the container's first process, from the node: a process cannot send it to the first of its own."""
    status = cluster.json("-n", RUNS, "get", "pod", pod)["status"]["containerStatuses"][0]
    container = status["containerID"].rpartition("/")[2]
    found = cluster.run("sh", "-c", f"grep -l {container} /proc/[0-9]*/cgroup | cut -d/ -f3 | sort -n | head -1")
    assert cluster.run("kill", "-9", found.stdout.strip()).returncode == 0


def test_training_pods_that_are_ended_are_retried_and_the_weights_are_the_same(
    applied: Medflow,
) -> None:
    """Each of three attempts ends in another way and at a random moment; the fourth completes.

    The first may end before it has a checkpoint, the others have gone on from one.
    """
    settings = (*SMALL, *LONG, "train.seed=7")
    moments = random.Random(time.time_ns())
    ended: list[str] = []
    endings = (delete, evict, kill) if applied.cluster.is_on_this_machine else (delete, evict)
    applied.write_place()
    with (
        applied.start_training(applied.place, "phantom", settings) as process,
        applied.elsewhere("alone").start_training("local", "phantom", settings) as undisturbed,
    ):
        for end in endings:
            pod = await_checkpoint(applied, after=ended) if ended else await_training(applied)
            pause = moments.uniform(0.0, 3.0 if ended else 20.0)
            print(f"{end.__name__} {pod} {pause:.2f} s after its {'first checkpoint' if ended else 'start'}")
            time.sleep(pause)
            end(applied.cluster, pod)
            ended.append(pod)
        told, alone = trained(finished(process)), trained(finished(undisturbed))
    assert f"(attempt {len(ended) + 1})" in told.said
    said = "".join(applied.kept_logs(told.run_id, TRAIN))
    assert said.count("training goes on in stage") in (len(ended) - 1, len(ended))
    assert not applied.objects("checkpoints/"), "a finished step leaves no checkpoint"
    assert told.threads == alone.threads, "bits are the same only for the same number of threads"
    assert (told.weights, told.curve) == (alone.weights, alone.curve)


def await_training(medflow: Medflow) -> str:
    """The training pod, as soon as it runs."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        if pod := medflow.running(TRAIN):
            return pod
        time.sleep(0.3)
    raise AssertionError("no training began")


def await_checkpoint(medflow: Medflow, after: list[str]) -> str:
    """The training pod, none of those in ``after``, as soon as it has written a checkpoint of its own."""
    until = time.monotonic() + 1500
    before: set[str] | None = None
    while time.monotonic() < until:
        pod = medflow.running(TRAIN)
        there = set(medflow.objects("checkpoints/"))
        if pod and pod not in after:
            before = there if before is None and after else before or set()
            if there - before:
                return pod
        time.sleep(0.3)
    raise AssertionError("no checkpoint came")


def test_a_run_outlives_its_servers_databases_store_and_control_plane(
    first: dict[str, Any], applied: Medflow, cluster: Cluster, servers: Servers
) -> None:
    """One after another in one training, all but the servers for a minute; then the run's orchestrator is lost.

    The store is reached through a forwarder of this test, which refuses every connection meanwhile.
    """
    with Forwarder(cluster.store.url) as way, applied.other_stack("${AWS_ENDPOINT_URL}", way.url):
        assert applied("stack", "apply", str(applied.stack)).returncode == 0
        applied.write_place()
        with applied.start_training(applied.place, "phantom", (*SMALL, *LONGEST, "train.seed=8")) as process:
            run_id = run_of(applied, await_checkpoint(applied, after=[]))
            restart_servers(cluster)
            await_answers(servers)
            outages = {
                "databases": databases_gone(cluster), "store": way.closed(), "control plane": frozen(cluster),
            }  # fmt: skip
            for name, outage in outages.items():
                print(f"{name}: {time.strftime('%X')}")
                with outage:
                    time.sleep(OUTAGE_SECONDS)
                await_answers(servers)
                assert process.poll() is None, f"the outage of the {name} was in mid-run"
            (lost,) = applied.pods(run_id)[""]
            # What had been said before is kept already.
            assert any("resolve" in name for name in applied.objects(f"runs/{run_id}/pods/") if name.endswith(".log"))
            delete(cluster, lost["metadata"]["name"])
            assert trained(finished(process)).run_id == run_id
    assert applied("stack", "apply", str(applied.stack)).returncode == 0


def run_of(medflow: Medflow, pod: str) -> str:
    labels: dict[str, str] = medflow.cluster.json("-n", RUNS, "get", "pod", pod)["metadata"]["labels"]
    return labels["run_id"]


def restart_servers(cluster: Cluster) -> None:
    """Both servers' pods are gone when this returns, and others come for them."""
    names = "app.kubernetes.io/name in (zenml-server,mlflow-server)"
    cluster.kubectl("-n", PLATFORM, "delete", "pod", "-l", names)


@contextmanager
def databases_gone(cluster: Cluster) -> Iterator[None]:
    words = ("-n", PLATFORM, "scale", "deployment", "mariadb", "postgres")
    try:
        cluster.kubectl(*words, "--replicas=0")
        cluster.kubectl("-n", PLATFORM, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=database",
                        "--timeout=120s")  # fmt: skip
        yield
    finally:
        cluster.kubectl(*words, "--replicas=1")


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """The API server takes connections and answers none, as with a control plane that is being replaced."""
    if not cluster.is_on_this_machine:
        print("the API server is no process of this machine, and goes on")
        yield
        return
    (server,) = cluster.run("pgrep", "-f", "kube-apiserver --etcd-servers").stdout.split()
    assert cluster.run("kill", "-STOP", server).returncode == 0
    try:
        yield
    finally:
        cluster.run("kill", "-CONT", server)


def await_answers(servers: Servers) -> None:
    """Until both servers answer a question that takes their databases."""
    until = time.monotonic() + 300
    while not all(answers(url) for url in (servers.zenml, servers.mlflow)):
        assert time.monotonic() < until, "a server does not come back"
        time.sleep(1)


def answers(url: str) -> bool:
    words = {"username": "nobody", "experiment_name": "phantom"}
    try:
        # ZenML's server knows the first and refuses who asks, MLflow's the second.
        found = [
            requests.post(f"{url}/api/v1/login", data=words, timeout=5),
            requests.get(f"{url}/api/2.0/mlflow/experiments/get-by-name", params=words, timeout=5),
        ]
    except requests.RequestException:
        return False
    return not any(response.status_code >= 500 for response in found)

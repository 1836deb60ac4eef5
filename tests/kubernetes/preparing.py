"""What all tests of this folder stand on: a cluster that is up, images in its registry, medflow's servers ready."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clusters import BUCKET, PLATFORM, ROOT, RUNS, SCRIPTS, STATE, Cluster, Store
from turns import TURNS

FOLDER = Path(os.environ.get("MEDFLOW_CLUSTER", ROOT.parent / "shared" / "cluster"))
KUBECONFIG, TAG = "MEDFLOW_KUBECONFIG", "MEDFLOW_TAG"
REGISTRY = os.environ.get("MEDFLOW_REGISTRY", "127.0.0.1:5000")


def is_possible() -> bool:
    return KUBECONFIG in os.environ or (FOLDER / "up.sh").is_file()


@contextmanager
def prepared() -> Iterator[None]:
    """Within this block the environment tells where everything is, to the processes of the tests too.

    Raises AssertionError at the end where a test has left something behind.
    """
    with ExitStack() as parts:
        cluster = parts.enter_context(_cluster())
        os.environ[KUBECONFIG] = str(cluster.kubeconfig)
        if TAG not in os.environ:
            parts.enter_context(_engine(cluster))
            os.environ[TAG] = _images(cluster)
        os.environ[TURNS] = parts.enter_context(tempfile.TemporaryDirectory(prefix="medflow-turns-"))
        parts.enter_context(_servers(cluster))
        yield
        found = _left(cluster)
        assert not found, f"left behind in the cluster: {', '.join(found)}"


@contextmanager
def _cluster() -> Iterator[Cluster]:
    """Taken down again only if it is started here."""
    if KUBECONFIG in os.environ:
        yield Cluster(Path(os.environ[KUBECONFIG]), REGISTRY)
        return
    found = Cluster(STATE / "admin.conf", REGISTRY)
    was_up = found.run("kubectl", "get", "--raw", "/readyz").returncode == 0
    if not was_up:
        _script(FOLDER / "up.sh")
    try:
        yield found
    finally:
        if not was_up:
            _script(FOLDER / "down.sh")


def _images(cluster: Cluster) -> str:
    """The tag under which the registry has every image then, made from this checkout."""
    done = cluster.run(ROOT / "infra" / "docker" / "images.sh", REGISTRY=cluster.registry)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("TAG=")[2].strip()


@contextmanager
def _servers(cluster: Cluster) -> Iterator[None]:
    """The dev overlay, applied and ready; it stays where it was before."""
    was_there = cluster.run("kubectl", "get", "namespace", PLATFORM).returncode == 0
    _bucket(cluster.store)
    for command in ([SCRIPTS / "make-secrets"], [SCRIPTS / "apply", "dev"]):
        given = {**cluster.store.environment, "REGISTRY": cluster.registry, "TAG": os.environ[TAG]}
        done = cluster.run(*command, **given)
        assert done.returncode == 0, done.stdout + done.stderr
    try:
        yield
    finally:
        if not was_there:
            cluster.kubectl("delete", "-k", str(ROOT / "build" / "kubernetes" / "dev"), "--timeout=300s")


def _script(path: Path) -> None:
    # The cluster's programs outlive the script, so it must not hand them a pipe that is read to its end.
    environment = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    done = subprocess.run([path], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.returncode == 0, f"{path} failed; see {STATE / 'log'}"


@contextmanager
def _engine(cluster: Cluster) -> Iterator[None]:
    """A Docker Engine that has python:3.11-slim, or a stand-in where no registry of images can be reached."""
    started = None
    if cluster.run("docker", "info").returncode:
        with (STATE / "log" / "dockerd.log").open("ab") as log:
            started = subprocess.Popen(["dockerd"], stdout=log, stderr=log, start_new_session=True)
        for _ in range(60):
            if cluster.run("docker", "info").returncode == 0:
                break
            time.sleep(1)
        # The engine lets nothing be forwarded that is not its own; pods' packets are.
        assert cluster.run("iptables", "-P", "FORWARD", "ACCEPT").returncode == 0
    if (
        cluster.run("docker", "image", "inspect", "python:3.11-slim").returncode
        and (FOLDER / "base-image.sh").is_file()
    ):
        _script(FOLDER / "base-image.sh")
    try:
        yield
    finally:
        if started is not None:
            started.terminate()
            started.wait(timeout=60)


def _left(cluster: Cluster) -> list[str]:
    """What a test should have taken away, and has not."""
    kinds = "cronjobs,deployments,services,horizontalpodautoscalers,trainjobs,trainingruntimes,persistentvolumeclaims"
    items = cluster.json("-n", RUNS, "get", kinds)["items"]
    secrets = cluster.json("-n", RUNS, "get", "secrets")["items"]
    items += [item for item in secrets if item["metadata"]["name"].startswith("zenml-token-")]
    return [
        f"{item['kind']} {item['metadata']['name']}" for item in items if "deletionTimestamp" not in item["metadata"]
    ]


def _bucket(store: Store) -> None:
    there = {bucket["Name"] for bucket in store.client.list_buckets()["Buckets"]}
    if BUCKET not in there:
        store.client.create_bucket(Bucket=BUCKET)

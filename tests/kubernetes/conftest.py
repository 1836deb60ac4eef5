"""A real cluster for the tests below this folder: started if need be, with the images and the servers of medflow on it.

Without settings it is the cluster of ``../shared/cluster`` (``MEDFLOW_CLUSTER`` names another folder with `up.sh` and
`down.sh`), taken down again only if these tests started it. For a cluster of one's own:

    MEDFLOW_KUBECONFIG   its kubeconfig, whose current context is an administrator's
    MEDFLOW_REGISTRY     a registry to push to that its nodes can pull from (default 127.0.0.1:5000)
    MEDFLOW_TAG          images that were pushed already; without it they are built and pushed
    MEDFLOW_STEP_TAG     likewise of the step image alone, where only the code has changed since
    AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   an S3 server
"""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clusters import BUCKET, PLATFORM, ROOT, RUNS, SCRIPTS, STATE, Cluster, Servers, Store
from commands import PLACE, Medflow, outcome_of, registered, user_of
from scheduling import DATASET, Schedules, Zenml, clear

FOLDER = Path(os.environ.get("MEDFLOW_CLUSTER", ROOT.parent / "shared" / "cluster"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.kubernetes)
    # The shared run's pods are looked at before they have been over for an hour. The README runs its dataset on a stack
    # of its own, and lets ZenML forget what others made of it.
    order = {here / "test_runs.py": -1, here / "test_readme.py": 1}
    items.sort(key=lambda item: order.get(item.path, 0))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    registry = os.environ.get("MEDFLOW_REGISTRY", "127.0.0.1:5000")
    given = os.environ.get("MEDFLOW_KUBECONFIG")
    if given:
        yield Cluster(Path(given), registry)
        return
    if not (FOLDER / "up.sh").is_file():
        pytest.skip(f"no cluster: set MEDFLOW_KUBECONFIG, or MEDFLOW_CLUSTER to a folder with up.sh (not {FOLDER})")
    found = Cluster(STATE / "admin.conf", registry)
    was_up = found.run("kubectl", "get", "--raw", "/readyz").returncode == 0
    if not was_up:
        _script(FOLDER / "up.sh")
    yield found
    if not was_up:
        _script(FOLDER / "down.sh")


@pytest.fixture(scope="session")
def tag(cluster: Cluster) -> Iterator[str]:
    """The tag under which the registry has every image, made from this checkout."""
    if "MEDFLOW_TAG" in os.environ:
        yield os.environ["MEDFLOW_TAG"]
        return
    with _engine(cluster):
        done = cluster.run(ROOT / "infra" / "docker" / "images.sh", REGISTRY=cluster.registry)
        assert done.returncode == 0, done.stderr
        yield done.stdout.rpartition("TAG=")[2].strip()


@pytest.fixture(scope="session")
def step_image(cluster: Cluster, tag: str) -> str:
    """What runs in the pods of a pipeline."""
    return f"{cluster.registry}/medflow-step:{os.environ.get('MEDFLOW_STEP_TAG', tag)}"


@pytest.fixture(scope="session")
def servers(cluster: Cluster, tag: str) -> Iterator[Servers]:
    """The dev overlay, applied and ready; it stays where it was before."""
    was_there = cluster.run("kubectl", "get", "namespace", PLATFORM).returncode == 0
    _bucket(cluster.store)
    for command in ([SCRIPTS / "make-secrets"], [SCRIPTS / "apply", "dev"]):
        done = cluster.run(*command, **cluster.store.environment, REGISTRY=cluster.registry, TAG=tag)
        assert done.returncode == 0, done.stdout + done.stderr
    yield Servers(
        zenml=cluster.address("zenml-server"),
        mlflow=cluster.address("mlflow-server"),
        user="admin",
        password=cluster.secret("zenml-server", "admin-password"),
    )
    assert _left(cluster) == []
    if not was_there:
        cluster.kubectl("delete", "-k", str(ROOT / "build" / "kubernetes" / "dev"), "--timeout=300s")


@pytest.fixture(scope="session")
def medflow(cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory) -> Medflow:
    return user_of(cluster, servers, step_image, tmp_path_factory.mktemp("runs"), f"test-{int(time.time())}")


@pytest.fixture(scope="session")
def applied(medflow: Medflow, servers: Servers) -> Iterator[Medflow]:
    servers.forget("phantom")
    with registered(medflow):
        yield medflow


@pytest.fixture(scope="session")
def first(applied: Medflow) -> dict[str, Any]:
    """What the first run of the smallest pipeline says of itself."""
    return outcome_of(applied(*applied.words()))


@pytest.fixture(scope="module")
def schedules(
    cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Schedules]:
    """An empty file of schedules on a stack of its own, signed in with an API key of its own."""
    user = user_of(cluster, servers, step_image, tmp_path_factory.mktemp("schedules"), f"schedules-{int(time.time())}")
    user.place.write_text(
        PLACE.format(stack=user.stack, memory="3Gi", timeout=1500, split_on="{}").replace(
            "timeout: 3000}", "timeout: 3000, retries: 0}"
        )
    )
    found = Schedules(user, Zenml(servers))
    clear(found)
    servers.forget(DATASET)
    with registered(user):
        found.sign_in(found.zenml.key("schedules")[1])
        yield found
        clear(found)
        found.sign_out()
        found.zenml.close_accounts()


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
    yield
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

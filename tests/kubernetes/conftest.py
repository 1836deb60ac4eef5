"""A real cluster for the tests below this folder: started if need be, with the images and the servers of medflow on it.

Without settings it is the cluster of ``../shared/cluster`` (``MEDFLOW_CLUSTER`` names another folder with `up.sh` and
`down.sh`), taken down again only if these tests started it. For a cluster of one's own:

    MEDFLOW_KUBECONFIG   its kubeconfig, whose current context is an administrator's
    MEDFLOW_REGISTRY     a registry to push to that its nodes can pull from (default 127.0.0.1:5000)
    MEDFLOW_TAG          images that were pushed already; without it they are built and pushed
    MEDFLOW_STEP_TAG     likewise of the step image alone, where only the code has changed since
    AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   an S3 server

Two processes share the files among them (`FIRST`), since one run leaves a third of two cores idle. What they stand on
is made once, by the process that starts both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import turns
from clusters import Cluster, Servers
from commands import PLACE, Medflow, outcome_of, registered, user_of
from preparing import FOLDER, KUBECONFIG, REGISTRY, TAG, is_possible, prepared
from scheduling import DATASET, Schedules, Zenml, clear
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
#: What one process tests, in this order: whatever has a run of `phantom`, and schedules; the other has the rest. The
#: shared run's pods are looked at before they have been over for an hour, and the page's own run of `phantom` comes
#: last, since later ones would keep to its split.
FIRST = ("runs", "failures", "deploy", "images", "schedules", "fires", "interruptions", "readme")
#: They take servers away, apply them anew, or let ZenML forget runs: each goes on alone, when others are done.
ALONE = ("interruptions", "readme")
_under_all = ExitStack()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not _is_worker(session.config) and not session.config.option.collectonly and is_possible():
        _under_all.enter_context(prepared())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    try:
        _under_all.close()
    except AssertionError as problem:
        print(f"\n{problem}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    for item in mine:
        item.add_marker(pytest.mark.kubernetes)
    mine.sort(key=lambda item: (_name(item.path) in ALONE, _place(item.path)))
    items[:] = mine + [item for item in items if item not in mine]


class InTwo(LoadScopeScheduling):
    """Each process gets the tests of its files, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return "first" if _name(Path(nodeid.partition("::")[0])) in FIRST else "second"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> InTwo:
    return InTwo(config, log)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _name(path: Path) -> str:
    return path.stem.removeprefix("test_")


def _place(path: Path) -> int:
    return FIRST.index(_name(path)) if _name(path) in FIRST else len(FIRST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test's turn has in it what its fixtures do."""
    with turns.of_test(quiet=item.get_closest_marker("quiet") is not None):
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests of a file go on beside those of others, or alone."""
    with turns.of_file(alone=_name(request.path) in ALONE):
        yield


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    if not is_possible():
        pytest.skip(f"no cluster: set {KUBECONFIG}, or MEDFLOW_CLUSTER to a folder with up.sh (not {FOLDER})")
    return Cluster(Path(os.environ[KUBECONFIG]), REGISTRY)


@pytest.fixture(scope="session")
def tag(cluster: Cluster) -> str:
    """The tag under which the registry has every image, made from this checkout."""
    return os.environ[TAG]


@pytest.fixture(scope="session")
def step_image(cluster: Cluster, tag: str) -> str:
    """What runs in the pods of a pipeline."""
    return f"{cluster.registry}/medflow-step:{os.environ.get('MEDFLOW_STEP_TAG', tag)}"


@pytest.fixture(scope="session")
def servers(cluster: Cluster) -> Servers:
    return Servers(
        zenml=cluster.address("zenml-server"),
        mlflow=cluster.address("mlflow-server"),
        user="admin",
        password=cluster.secret("zenml-server", "admin-password"),
    )


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

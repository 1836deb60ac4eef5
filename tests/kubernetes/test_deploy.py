"""A model into service in a cluster: it answers, is replaced without a lost request, stays where the next one fails.

Everything is done by an account that has the role medflow-deployer and no other right.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import handmade
import httpx
import numpy as np
import pytest
import registries
import yaml
from clusters import ROOT, RUNS, Cluster, Servers
from commands import SMALL, Medflow
from load import load
from PIL import Image

from medflow.config.sections.place import ServingPlace
from medflow.config.sections.stack import StackConfig
from medflow.errors import ServingError
from medflow.package import package
from medflow.platform.kubernetes import cluster as clusters_of_medflow
from medflow.platform.kubernetes import deploying
from medflow.platform.kubernetes.model_image import prepare_image
from medflow.platform.kubernetes.serving_objects import Release, Served

pytestmark = [pytest.mark.timeout(1800)]

SERVING = {"replicas": [1, 3], "cpu": 0.1, "memory": "512Mi", "timeout": 240, "drain": 6}
DEPLOYER = "medflow-test-deployer"
EVERYTHING = "deployments,replicasets,pods,services,horizontalpodautoscalers,poddisruptionbudgets,networkpolicies"


@dataclass(frozen=True)
class Deployer:
    """The command line of somebody who deploys models that were trained on this machine."""

    folder: Path
    environment: dict[str, str]
    cluster: Cluster

    def __call__(self, *words: str, **settings: Any) -> subprocess.CompletedProcess:
        """A command, at a place whose settings for serving are changed by ``settings``."""
        place = self.folder / "place.yaml"
        place.write_text(yaml.safe_dump({"stack": str(self.folder / "stack.yaml"), "serving": SERVING | settings}))
        return self.run(*words, "--on", str(place))

    def run(self, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "medflow.cli", *words]
        return subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)

    def deployed(self, *words: str, **settings: Any) -> dict[str, Any]:
        done = self("deploy", *words, "--json", **settings)
        assert done.returncode == 0, done.stderr
        outcome: dict[str, Any] = json.loads(done.stdout)
        return outcome

    def refused(self, *words: str, **settings: Any) -> str:
        """What a deployment that must fail said."""
        done = self("deploy", *words, **settings)
        assert done.returncode == ServingError.exit_code, done.stdout + done.stderr
        return done.stderr

    @property
    def url(self) -> str:
        return self.cluster.address("model-phantom", RUNS)

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = httpx.get(f"{self.url}/model/info", timeout=60).json()
        return info


@pytest.fixture(scope="module")
def deployer(
    cluster: Cluster, servers: Servers, tag: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployer]:
    folder = tmp_path_factory.mktemp("deploy")
    stack = {
        "server": "http://nowhere",
        "cluster": {"context": "client", "namespace": RUNS},
        "image": f"{cluster.registry}/medflow-step:{tag}",
        "registry": cluster.registry,
        "store": {"uri": "s3://nowhere"},
        "mlflow": {"uri": "http://nowhere"},
    }
    (folder / "stack.yaml").write_text(yaml.safe_dump(stack))
    bind(cluster)
    (folder / "kubeconfig").write_text(cluster.kubeconfig_of(DEPLOYER))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MEDFLOW_HOME": str(folder / "home"),
                   "KUBECONFIG": str(folder / "kubeconfig"), "DOCKER_CONFIG": str(folder / "docker")}  # fmt: skip
    yield Deployer(folder, environment, cluster)
    for kind in EVERYTHING.split(","):
        cluster.run("kubectl", "-n", RUNS, "delete", kind, "-l", "medflow.dev/model in (phantom, handmade)")
    cluster.kubectl("-n", RUNS, "delete", f"rolebinding/{DEPLOYER}", f"serviceaccount/{DEPLOYER}")


def bind(cluster: Cluster) -> None:
    """An account that may deploy models and nothing else."""
    who = {"name": DEPLOYER, "namespace": RUNS}
    api = "rbac.authorization.k8s.io"
    binding = {"apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": who,
               "roleRef": {"apiGroup": api, "kind": "Role", "name": "medflow-deployer"},
               "subjects": [{"kind": "ServiceAccount", **who}]}  # fmt: skip
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": who}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all([account, binding]))


@pytest.fixture(scope="module")
def trained(deployer: Deployer) -> Deployer:
    """Two versions on record on this machine, of which the first is in production."""
    for seed in ("0", "1"):
        done = deployer.run("run", "phantom", *SMALL, f"train.seed={seed}", "--json")
        assert done.returncode == 0, done.stderr
    return deployer


@pytest.fixture(scope="module")
def serving(trained: Deployer) -> Deployer:
    """The first version in service."""
    outcome = trained.deployed("phantom", "--stage", "production", "--from", "local")
    assert outcome["model"] == "phantom@1" and outcome["state"] == "in service" and outcome["before"] is None
    return trained


def wait(what: str, holds: Callable[[], Any], seconds: float = 240.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := holds():
            return found
        time.sleep(2)
    raise AssertionError(f"not within {seconds} s: {what}")


# -- in service ----------------------------------------------------------------------------------


def test_the_model_in_production_answers(serving: Deployer) -> None:
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        answer = client.post("/predict", files={"image": ("scan.png", handmade.image_file(90))}).json()
        assert abs(sum(answer["probabilities"].values()) - 1) < 1e-3
    deployment = serving.cluster.json("-n", RUNS, "get", "deployment", "model-phantom")
    facts = deployment["spec"]["template"]["metadata"]["annotations"]
    assert facts["medflow.dev/package-digest"] == serving.info()["package"]["digest"]
    assert facts["medflow.dev/version"] == "1"


def test_its_pods_may_do_nothing(serving: Deployer) -> None:
    (pod, *_) = serving.cluster.json("-n", RUNS, "get", "pods", "-l", "medflow.dev/model=phantom")["items"]
    assert pod["spec"]["serviceAccountName"] == "medflow-serving"
    assert pod["spec"]["priorityClassName"] == "medflow-serving"
    inside = ["kubectl", "-n", RUNS, "exec", pod["metadata"]["name"], "--", "sh", "-c"]
    user = serving.cluster.run(*inside, "id -u; touch /opt/x; touch /bento/x; ls /var/run/secrets/kubernetes.io")
    assert user.stdout.split() == ["1000"]
    assert user.stderr.count("Read-only file system") == 2 and "No such file" in user.stderr


def test_a_second_time_changes_nothing(serving: Deployer) -> None:
    def generation() -> int:
        return serving.cluster.json("-n", RUNS, "get", "deployment", "model-phantom")["metadata"]["generation"]

    before = generation()
    assert serving.deployed("phantom", "--from", "local")["before"] is None
    assert generation() == before


def test_what_would_be_applied_is_accepted(serving: Deployer) -> None:
    done = serving("deploy", "phantom@2", "--from", "local", "--dry-run")
    assert done.returncode == 0, done.stderr
    said = serving.cluster.run("kubectl", "apply", "--server-side", "--dry-run=server", "--field-manager=medflow",
                               "-f", "-", stdin=done.stdout)  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "Warning" not in said.stderr
    assert serving.info()["version"] in json.loads(serving("deployments", "--json").stdout)[0]["bento"]


# -- replaced ------------------------------------------------------------------------------------


def test_an_update_and_the_way_back_lose_no_request(serving: Deployer) -> None:
    first = serving.info()["version"]
    with load(serving.url, handmade.image_file(90)) as asked:
        time.sleep(5)
        outcome = serving.deployed("phantom@2", "--from", "local", replicas=[2, 3])
        assert (outcome["model"], outcome["before"]) == ("phantom@2", "phantom@1")
        second = serving.info()["version"]
        time.sleep(10)
        outcome = serving.deployed("phantom", "--previous")
        assert (outcome["model"], outcome["before"]) == ("phantom@1", "phantom@2")
        time.sleep(10)
    print(f"{asked.answered.total()} requests answered, {asked.postponed} times told to come back, "
          f"{len(asked.failed)} failed: {dict(asked.answered)}")  # fmt: skip
    assert asked.failed == []
    assert asked.postponed < asked.answered.total() / 100
    assert set(asked.answered) == {first, second} and first != second
    assert min(asked.answered.values()) > 100
    assert serving.info()["version"] == first


def test_the_autoscaler_sees_the_load(serving: Deployer) -> None:
    def seen() -> Any:
        status = serving.cluster.json("-n", RUNS, "get", "hpa", "model-phantom")["status"]
        metrics = [
            metric["resource"]["current"] for metric in status.get("currentMetrics") or [] if "resource" in metric
        ]
        return [current["averageUtilization"] for current in metrics if "averageUtilization" in current]

    (share,) = wait("the autoscaler knows the load", seen)
    used = serving.cluster.kubectl("-n", RUNS, "top", "pods", "-l", "medflow.dev/model=phantom", "--no-headers")
    print(f"{share} % of the reserved cores; pods, cores, memory: {used.split()}")


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory": "64Mi"}, "memory limit of 64Mi"),
        ({"node_selector": {"nowhere": "x"}, "timeout": 30}, "unschedulable: 0/"),
    ],
)
def test_a_release_that_does_not_come_leaves_the_one_before(
    serving: Deployer, settings: dict[str, Any], said: str
) -> None:
    before = serving.info()["version"]
    with load(serving.url, handmade.image_file(90)) as asked:
        error = serving.refused("phantom@2", "--from", "local", **settings)
    assert said in error and "phantom@1 goes on serving" in error
    assert asked.failed == [] and set(asked.answered) == {before}
    (item,) = json.loads(serving("deployments", "--json").stdout)
    assert (item["model"], item["before"]) == ("phantom@1", "phantom@2")
    wait("the pods that did not come are gone", lambda: len(_pods(serving)) == item["replicas"])


def test_an_image_that_cannot_be_pulled(serving: Deployer, tmp_path: Path) -> None:
    if registries.PROGRAM is None:
        pytest.skip("there is no docker-registry")
    with registries.registry(tmp_path / "registry", registries.asks_for_password(tmp_path / "auth")) as host:
        registries.docker_login(serving.folder / "docker", host)
        error = _elsewhere(serving, {"registry": host})
    assert "ImagePullBackOff" in error and host in error and "phantom@1 goes on serving" in error
    assert registries.PASSWORD not in error


def test_an_image_that_serves_nothing(serving: Deployer, tag: str) -> None:
    error = _elsewhere(serving, {"serving_image": f"{serving.cluster.registry}/medflow-postgres:{tag}"})
    assert "ends again and again" in error and "its log ends:" in error and "phantom@1 goes on serving" in error


def _elsewhere(serving: Deployer, changed: dict[str, str]) -> str:
    """What a deployment by a changed stack says; the model before must go on."""
    path = serving.folder / "stack.yaml"
    before, stack = serving.info()["version"], path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(stack) | changed))
    try:
        with load(serving.url, handmade.image_file(90)) as asked:
            error = serving.refused("phantom@2", "--from", "local")
    finally:
        path.write_text(stack)
    assert asked.failed == [] and set(asked.answered) == {before}
    return error


def test_a_model_that_is_never_ready_is_taken_away_again(
    deployer: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the client library looks, which it learns when it is imported.
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", deployer.environment["KUBECONFIG"]
    )
    stack = StackConfig.model_validate(yaml.safe_load((deployer.folder / "stack.yaml").read_text()))
    bundle = handmade.bundle(tmp_path / "bundle", golden_error=1.0)
    made = package(bundle, handmade.evaluation(bundle), work=tmp_path / "work")
    prepared = prepare_image(made, stack, tmp_path)
    assert prepared.push()
    served = Served(model="handmade", version="1", bento=made.facts.tag, package_digest=made.facts.content_digest,
                    bundle_digest=made.facts.bundle_digest, image=str(prepared.name),
                    base_digest=prepared.base_digest)  # fmt: skip
    release = Release(served=served, settings=ServingPlace(**SERVING), account="medflow-serving")
    target = deploying.target(clusters_of_medflow.connect("client", RUNS))
    began = time.monotonic()
    with pytest.raises(ServingError, match="golden set") as told:
        deploying.deploy(target, release)
    assert "nothing served before, so it was taken away again" in told.value.message
    assert time.monotonic() - began < SERVING["timeout"]
    wait("its pod has ended", lambda: _left(deployer, "handmade") == [])


def _pods(deployer: Deployer) -> list[Any]:
    return deployer.cluster.json("-n", RUNS, "get", "pods", "-l", "medflow.dev/model=phantom")["items"]


# -- size ----------------------------------------------------------------------------------------


def test_the_largest_images_do_not_end_a_pod(serving: Deployer) -> None:
    serving.deployed("phantom", "--from", "local", memory="1Gi", replicas=[1, 1])
    (pod,) = wait("one pod is left", lambda: pods if len(pods := _pods(serving)) == 1 else None)
    with load(serving.url, _largest(), kept=0, fresh=2) as asked:
        wait("four of them were answered", lambda: asked.answered.total() >= 4)
    assert [why for why in asked.failed if not why.startswith("504")] == []  # late on a busy machine, never cut off
    (pod,) = _pods(serving)
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def _largest() -> bytes:
    """Just below 100 million pixels in three channels; repetition makes it small as a file."""
    rows = np.arange(9900, dtype=np.uint8)[:, None, None]
    stream = io.BytesIO()
    Image.fromarray(np.broadcast_to(rows, (9900, 9900, 3))).save(stream, "PNG")
    return stream.getvalue()


# -- rights --------------------------------------------------------------------------------------


def test_an_account_without_the_role_is_told_which(serving: Deployer) -> None:
    path = serving.folder / "kubeconfig"
    before = path.read_text()
    path.write_text(serving.cluster.kubeconfig_of("medflow-serving"))
    try:
        done = serving("deploy", "phantom@2", "--from", "local")
    finally:
        path.write_text(before)
    assert done.returncode == 9
    assert "cannot get resource" in done.stderr and "medflow-deployer" in done.stderr


# -- out of service ------------------------------------------------------------------------------


def test_undeploy_leaves_nothing(serving: Deployer) -> None:
    done = serving("undeploy", "phantom")
    assert done.returncode == 0, done.stderr
    assert _left(serving, "phantom") == []
    assert serving("deployments").stdout.startswith("no model is in service")
    again = serving("undeploy", "phantom")
    assert again.returncode == 2 and "phantom is not in service" in again.stderr


def _left(deployer: Deployer, model: str) -> list[str]:
    items = deployer.cluster.json("-n", RUNS, "get", EVERYTHING, "-l", f"medflow.dev/model={model}")["items"]
    return [f"{item['kind']} {item['metadata']['name']}" for item in items]


def test_a_model_that_was_promoted_on_the_cluster(first: dict[str, Any], medflow: Medflow, deployer: Deployer) -> None:
    medflow = replace(medflow, environment={**medflow.environment, "KUBECONFIG": deployer.environment["KUBECONFIG"]})
    place = medflow.folder / "serving.yaml"
    place.write_text(yaml.safe_dump({"stack": str(medflow.stack), "serving": SERVING}))
    done = medflow("deploy", "phantom", "--stage", "production", "--on", str(place), "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    url = medflow.cluster.address("model-phantom", RUNS)
    assert httpx.get(f"{url}/model/info", timeout=60).json()["version"] in outcome["bento"]
    assert medflow("undeploy", "phantom", "--on", str(place)).returncode == 0

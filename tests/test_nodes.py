"""A training on several nodes: what is rendered for a cluster, and the nodes' own program, started by torchrun here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import squares
import tiny
import torch
import yaml
from kubernetes import client
from test_options import VIT
from test_ranks import SHARED, losses

from medflow import models
from medflow.checkpoint import Checkpoints
from medflow.config.reading import load
from medflow.config.sections import PruneConfig, TrainConfig
from medflow.config.sections.place import PlaceConfig, StepPlace, Toleration
from medflow.config.sections.stack import ClusterConfig
from medflow.errors import ConfigError, TrainingError
from medflow.fit import Data, fit, nodes
from medflow.platform.kubernetes import fitting, preflight, settings, trainjobs
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.gathering import Gathered
from medflow.platform.kubernetes.last_words import first_words
from medflow.platform.kubernetes.readback import dropped
from medflow.prune import narrow
from medflow.records import Manifest
from medflow.tracking import LocalFiles, Silent

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "trainjobs"
ASKED = StepPlace(
    cpu=4, memory="8Gi", gpu=2, shm="2Gi", retries=2, timeout=600, nodes=2, node_selector={"gpu": "a100"},
    tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),), secrets=("hub",),
    priority="medflow-step", runtime_class="nvidia",
)  # fmt: skip
TOKEN = {"name": "ZENML_STORE_API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "zenml-token-1", "key": "token"}}}
TRAINING = trainjobs.Training(
    run_id="0c5f7cf2-5b0b-4ad5-a13e-0f6b1c9d2f11", step="train_resnet18", image="registry.example/medflow-step:abc",
    folder="s3://bucket/checkpoints/key", asked=ASKED, processes=2, cluster=ClusterConfig(context="test"),
    environment=({"name": "ZENML_STORE_URL", "value": "http://zenml.example"}, TOKEN),
    owner={"apiVersion": "v1", "kind": "Pod", "name": "train-1", "uid": "d1"},
)  # fmt: skip


# -- what is rendered ------------------------------------------------------------------------------


@pytest.mark.parametrize("render", [trainjobs.runtime, trainjobs.train_job], ids=lambda render: render.__name__)
def test_what_is_rendered_is_what_was_agreed(render):
    """`pytest` with MEDFLOW_GOLDEN=write writes them anew."""
    golden = GOLDEN / f"{render.__name__}.yaml"
    text = yaml.safe_dump(render(TRAINING), sort_keys=False, width=120)
    if os.environ.get("MEDFLOW_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_node_gets_what_was_asked_and_the_step_that_waits_neither_its_gpus_nor_its_cores():
    job = trainjobs.runtime(TRAINING)["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
    assert dropped(ASKED.model_copy(update={"retries": 0}), job) == ()
    own = ASKED.waiting()
    assert (own.gpu, own.cpu, own.memory) == (0, 0.25, "8Gi")
    assert (own.priority, own.runtime_class) == ("medflow-step", None), "no node with GPUs is needed to wait"
    assert StepPlace(gpu=1).waiting() == StepPlace(gpu=1)


def test_no_secret_stands_in_what_is_rendered():
    text = yaml.safe_dump([trainjobs.runtime(TRAINING), trainjobs.train_job(TRAINING)])
    assert "secretKeyRef" in text and text.count("TOKEN") == 1


def test_only_a_step_with_nodes_may_start_pods():
    place = PlaceConfig(stack="a", steps={"default": StepPlace(), "train": ASKED})
    stack = SimpleNamespace(cluster=ClusterConfig(context="test"))
    made = settings.of_steps(place, {"train_x": "train", "split": "split"}, stack)
    given = {use: made[use]["settings"]["orchestrator"] for use in made}
    assert given["train_x"]["step_pod_service_account_name"] == "medflow-trainer"
    assert given["train_x"]["pod_settings"]["labels"] == settings.STARTS_NODES
    assert "step_pod_service_account_name" not in given["split"] and "labels" not in given["split"]["pod_settings"]
    assert "nvidia.com/gpu" not in given["train_x"]["pod_settings"]["resources"]["limits"]
    assert StepPlace.model_validate(made["train_x"]["extra"][settings.NODE]) == ASKED
    assert settings.NODE not in made["split"]["extra"]


@pytest.mark.parametrize("name", ["default", "ingest"])
def test_a_step_that_does_not_train_has_no_nodes(name):
    with pytest.raises(ValueError, match="only train and prune"):
        PlaceConfig(stack="a", steps={"default": StepPlace(), name: StepPlace(nodes=2)})


def test_nodes_share_the_processes_evenly():
    place = PlaceConfig(stack="a", steps={"default": StepPlace(), "train": StepPlace(nodes=2)})
    settings.check_nodes(place, load("phantom", ["train.devices=4"]))
    with pytest.raises(ConfigError, match=r"2 nodes cannot share train.devices=3 evenly") as error:
        settings.check_nodes(place, load("phantom", ["train.devices=3"]))
    assert "multiple of 2" in error.value.hint


# -- who fell first --------------------------------------------------------------------------------

LOST = "2026-01-01T00:00:0{second}Z medflow node: process 1 of 2: RuntimeError: [..gloo..] Connection closed by peer"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2026-01-01T00:00:03Z medflow node: process 2 of 2: ValueError: what it was", "ValueError: what it was"),
        ("2026-01-01T00:00:03Z   traceback : Signal 9 (SIGKILL) received by PID 33", "killed: Signal 9 (SIGKILL)"),
    ],
)
def test_the_node_that_fell_is_told_and_not_the_one_that_lost_its_neighbour(line, told):
    logs = {"x-0": LOST.format(second=2), "x-1": f"2026-01-01T00:00:01Z all is well\n{line}\n"}
    assert told in first_words(logs) and first_words(logs).endswith("(pod x-1)")
    assert "Connection closed" in first_words({"x-0": logs["x-0"]})
    assert first_words({}) is None


def test_logs_are_read_again_at_the_end_and_no_variable_is_written(tmp_path):
    logs = iter(["first", "last"])
    gathered = Gathered(SimpleNamespace(log=lambda name: next(logs)))
    spec = {"containers": [{"name": "node", "env": [{"name": "TOKEN", "value": "secret"}]}]}
    pod = {"metadata": {"name": "x-0"}, "status": {"phase": "Running"}, "spec": spec}
    for _ in range(2):
        gathered.note(Observed({}, (pod,)))
    assert gathered.logs == {"x-0": "first"}
    gathered.forget_reading()
    gathered.note(Observed({}, (pod,)))
    gathered.write(LocalFiles(tmp_path), "events-x.json")
    assert {path.name for path in tmp_path.iterdir()} == {"x-0.log", "x-0.json", "events-x.json"}
    assert (tmp_path / "x-0.log").read_text() == "last" and "secret" not in (tmp_path / "x-0.json").read_text()


# -- the nodes' program ----------------------------------------------------------------------------

CONFIG = SHARED.model_copy(update={"stages": SHARED.stages[:2], "devices": 2})


class Heard(Silent):
    def __init__(self) -> None:
        self.curve: dict[int, float] = {}

    def metrics(self, values, step):
        self.curve[step] = values["train/loss"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("pixels"), rows=37)


def order_of(made, config: TrainConfig, inputs: dict[str, str]):
    network, data = network_of(made)
    return network, nodes.Order(
        structure=network.structure, config=config, training=data.digest()[:16], nodes=2, inputs=inputs
    )


def network_of(made):
    train, val, pixels, _ = made
    preprocess = tiny.preprocess()
    network = models.build(VIT, (tiny.LABELS,), preprocess, seed=3)
    return network, Data(train, val, pixels, (tiny.LABELS,), preprocess)


@pytest.fixture(scope="module")
def stored(made) -> dict[str, str]:
    """Ids of the rows and pixels as artifacts of the local stack."""
    from zenml import save_artifact

    import materializers
    from medflow.platform import stack

    stack.use_local()
    kinds = {Manifest: materializers.ManifestMaterializer}
    return {
        name: str(save_artifact(value, name, materializer=kinds.get(type(value), materializers.PixelsMaterializer)).id)
        for name, value in zip(("train", "val", "pixels"), made[:3], strict=True)
    }


@pytest.fixture(scope="module")
def store(stored) -> Path:
    """The local stack's artifact store, in which an order must lie."""
    from medflow.platform import stack

    return Path(stack.client().active_stack.artifact_store.path) / "checkpoints"


def on_two_nodes(folder: Path, seconds: int = 200) -> list[subprocess.CompletedProcess]:
    """torchrun once a node, with the variables that Kubeflow Trainer gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1",
              "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, *trainjobs.runtime(TRAINING)["spec"]["template"]["spec"]["replicatedJobs"][0]
               ["template"]["spec"]["template"]["spec"]["containers"][0]["command"][1:], str(folder)]  # fmt: skip
    started = [
        subprocess.Popen(command, env={**shared, "PET_NODE_RANK": str(rank)}, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]  # fmt: skip
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *process.communicate(timeout=seconds))
        for process in started
    ]


def test_two_nodes_follow_two_processes_of_one_machine_and_one_alone(made, stored, store, tmp_path):
    network, order = order_of(made, CONFIG, stored)
    files = LocalFiles(store / "followed")
    nodes.give(files, order, network)
    ended = on_two_nodes(files.folder)
    best, log = nodes.result(files) or pytest.fail(ended[0].stdout + ended[1].stdout)
    heard = Heard()
    assert len(nodes.Heard(files, heard).next()) >= len(log.epochs) == 3
    assert heard.curve == {number + 1: entry.train_loss for number, entry in enumerate(log.epochs)}
    assert log.devices == 2

    together, data = network_of(made)
    checkpoints = Checkpoints(LocalFiles(tmp_path / "two"), "two")
    two = fit(together, data, CONFIG, tracker=Silent(), checkpoints=checkpoints)
    assert losses(log) == losses(two), "the same processes on other machines"
    assert all(torch.equal(best[name], value) for name, value in together.state_dict().items())

    alone, _ = network_of(made)
    checkpoints = Checkpoints(LocalFiles(tmp_path / "one"), "one")
    one = fit(alone, data, CONFIG.model_copy(update={"devices": 1}), tracker=Silent(), checkpoints=checkpoints)
    assert losses(log) == pytest.approx(losses(one), rel=1e-5)
    nodes.clear(files)
    assert all(name.startswith(order.training) for name in files.names())


@pytest.mark.slow
def test_an_error_of_a_node_is_left_for_the_step_to_raise(made, stored, store):
    config = CONFIG.model_copy(update={"monitor": "no such metric"})
    network, order = order_of(made, config, stored)
    files = LocalFiles(store / "failed")
    nodes.give(files, order, network)
    ended = on_two_nodes(files.folder)
    problem = nodes.failure(files)
    assert isinstance(problem, ConfigError) and "no such metric" in problem.message and problem.hint
    assert "medflow node: process 1 of 2: ConfigError: " in ended[0].stdout + ended[1].stdout
    assert nodes.result(files) is None


def test_a_folder_without_an_order_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="there is no nodes-order"):
        nodes.order_in(LocalFiles(tmp_path))


# -- before a run ----------------------------------------------------------------------------------


class Absent(BaseHTTPRequestHandler):
    """Answers as an API server does for a kind that it does not know."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"404 page not found\n")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_cluster_without_kubeflow_trainer_is_told_only_where_nodes_are_asked_for():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Absent)
    Thread(target=server.serve_forever, daemon=True).start()
    api = client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{server.server_port}"))
    here = Cluster(client.CoreV1Api(api), client.BatchV1Api(api), "medflow")
    place = PlaceConfig(stack="a", steps={"default": StepPlace(), "train": StepPlace(nodes=2)})
    [finding] = preflight.trainer_findings(here, place)
    assert not finding.ok and "no trainjobs.trainer.kubeflow.org/v1alpha1" in finding.found
    assert "install Kubeflow Trainer" in finding.remedy
    assert list(preflight.trainer_findings(here, PlaceConfig(stack="a"))) == []
    server.shutdown()


def test_a_quota_must_leave_room_for_every_node_and_the_step_that_waits():
    def quota(memory: str) -> dict:
        return {"metadata": {"name": "q"}, "spec": {"hard": {"requests.memory": memory}}, "status": {"used": {}}}

    asked, orchestrator = StepPlace(memory="4Gi", nodes=2), StepPlace(memory="1Gi")
    assert not list(fitting.quota_findings("train", asked, orchestrator, [quota("13Gi")]))
    assert list(fitting.quota_findings("train", asked, orchestrator, [quota("12Gi")]))


def test_an_order_carries_a_pruned_network_too(tmp_path):
    rows, pixels = squares.data(tmp_path / "pixels")
    bundle = squares.torch_bundle(tmp_path / "bundle", squares.UNET, rows, pixels)
    network, layers = narrow(bundle, PruneConfig(ratio=0.5))
    order = nodes.Order(structure=network.structure, config=TrainConfig(), training="x", nodes=2)
    files = LocalFiles(tmp_path / "folder")
    nodes.give(files, order, network)
    found = nodes.order_in(files)
    assert found == order and found.structure.pruned == layers != ()
    models.rebuild(found.structure).load_state_dict(models.tensors_of(network))

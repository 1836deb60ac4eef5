"""Steps side by side: trainings in two processes, one MLflow server, one ZenML store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient
from mlflow.server import constants
from werkzeug.serving import make_server

from medflow.config.reading import load
from medflow.platform import trackers
from pipelines.training import training

ROOT = Path(__file__).resolve().parents[1]

RUN = """
import os
from medflow.platform import stack
stack.use_local()
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
client = Client()
client.create_flavor("process_orchestrator.ProcessOrchestratorFlavor", Kind.ORCHESTRATOR)
client.create_stack_component("processes", "processes", Kind.ORCHESTRATOR, {})
client.create_stack_component("server", "mlflow", Kind.EXPERIMENT_TRACKER,
    {"tracking_uri": os.environ["TEST_MLFLOW"], "tracking_username": "x", "tracking_password": "x"})
made = client.create_stack("processes", components={
    Kind.ORCHESTRATOR: "processes", Kind.ARTIFACT_STORE: stack.STORE, Kind.EXPERIMENT_TRACKER: "server"})
os.environ["ZENML_ACTIVE_STACK_ID"] = str(made.id)
os.environ["MEDFLOW_ON"] = "processes"
from tests.fanout_pipeline import fanout
print("STATUS", fanout().status.value)
"""


@pytest.fixture
def mlflow_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's own server over HTTP; in a thread, since its program takes far longer to start."""
    monkeypatch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, str(tmp_path / "files"))
    from mlflow.server import app

    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


def test_trainings_side_by_side_have_one_parent_even_where_none_was_made_before_them(mlflow_url, tmp_path):
    """MLflow was down when `resolve` would have made it: both trainings begin at the same moment without one."""
    (tmp_path / "meeting").mkdir()
    (tmp_path / "run.py").write_text(RUN)
    home = tmp_path / "home"
    environment = {
        **os.environ, "MEDFLOW_HOME": str(home), "TEST_MLFLOW": mlflow_url, "TEST_PARALLEL": "2",
        "TEST_MEETING": str(tmp_path / "meeting"), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "ZENML_CONFIG_PATH": str(home / "zenml" / "config"), "ZENML_LOCAL_STORES_PATH": str(home / "zenml" / "stores"),
    }  # fmt: skip
    command = [sys.executable, str(tmp_path / "run.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert "STATUS completed" in done.stdout, done.stdout[-2000:] + done.stderr[-3000:]
    assert "does not answer" not in done.stderr

    mlflow = MlflowClient(mlflow_url)
    [experiment] = [item for item in mlflow.search_experiments() if item.name == "fanout"]
    runs = mlflow.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if run.data.tags[trackers.KIND_TAG] == "pipeline"]
    children = [run for run in runs if run.data.tags[trackers.KIND_TAG] == "step"]
    assert {run.info.run_name for run in children} == {"train one", "train two"} and len(runs) == 3
    assert {run.data.tags[trackers.PARENT_TAG] for run in children} == {parent.info.run_id}
    assert {run.data.tags[trackers.STEP_TAG] for run in children} == {"train_one", "train_two"}
    assert all(run.info.status == "FINISHED" and run.data.metrics == {"loss": 0.5} for run in children)


def test_no_training_waits_for_another():
    """Models of a dataset have no path between them, and neither have shards, so a cluster may start all at once."""
    config = load("phantom", ["ingest.shards=3", "models=[{kind: timm, name: resnet18, id: a, size: 32, pretrained: "
                              "none}, {kind: timm, name: resnet18, id: b, size: 32, pretrained: none}]"])  # fmt: skip
    pipeline = training(config)
    pipeline.prepare()
    upstream = {name: set(call.upstream_steps) for name, call in pipeline.invocations.items()}
    before = {name: _all_before(name, upstream) for name in upstream}
    for together in (["train_a", "train_b"], ["ingest_shard_0", "ingest_shard_1", "ingest_shard_2"]):
        assert all(before[name].isdisjoint(together) for name in together)
        assert len({frozenset(upstream[name]) for name in together}) == 1
    assert before["train_a"] == {"resolve", "ingest_shard_0", "ingest_shard_1", "ingest_shard_2", "ingest",
                                 "validate", "split", "normalize"}  # fmt: skip
    assert "train_b" not in before["evaluate_val_a"]


def _all_before(name: str, upstream: dict[str, set[str]]) -> set[str]:
    return upstream[name].union(*(_all_before(other, upstream) for other in upstream[name]))


def test_a_second_attempt_closes_what_the_first_left_running(tmp_path):
    mlflow = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = mlflow.create_experiment("e", (tmp_path / "files").as_uri())
    tags = {trackers.RUN_TAG: "r", trackers.STEP_TAG: "train_a"}
    mine, other = (mlflow.create_run(experiment, run_name=name, tags=tags) for name in ("train a", "train b"))
    trackers._close_earlier(mlflow, experiment, tags, "train a")
    assert [mlflow.get_run(run.info.run_id).info.status for run in (mine, other)] == ["KILLED", "RUNNING"]


def test_an_experiment_that_another_process_makes_at_the_same_moment_is_taken(tmp_path, monkeypatch):
    mlflow = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = mlflow.create_experiment("e", (tmp_path / "files").as_uri())
    look, answers = mlflow.get_experiment_by_name, iter([None])
    monkeypatch.setattr(mlflow, "get_experiment_by_name", lambda name: next(answers, look(name)))
    assert trackers._experiment(mlflow, "e") == made

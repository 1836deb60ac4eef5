"""Nothing depends on the local disk of the step before: each step is a process, the artifact store is S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import s3
from test_pipeline import SMALL

pytestmark = pytest.mark.s3
ROOT = Path(__file__).resolve().parents[1]

#: Registers the stack and runs the pipeline on it; prints the steps as JSON.
RUN = """
import json, os, sys
from medflow.platform import stack
stack.use_local()
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
client = Client()
url = os.environ["TEST_S3_URL"]
def ensure(name, kind, flavor, settings):
    try:
        client.get_stack_component(kind, name, allow_name_prefix_match=False)
    except KeyError:
        client.create_stack_component(name=name, flavor=flavor, component_type=kind, configuration=settings)
    return name
try:
    client.get_flavor_by_name_and_type("processes", Kind.ORCHESTRATOR)
except KeyError:
    client.create_flavor("process_orchestrator.ProcessOrchestratorFlavor", Kind.ORCHESTRATOR)
parts = {
    Kind.ORCHESTRATOR: ensure("processes", Kind.ORCHESTRATOR, "processes", {}),
    Kind.ARTIFACT_STORE: ensure("s3", Kind.ARTIFACT_STORE, "s3", {
        "path": "s3://medflow", "key": "test", "secret": "test-secret",
        "client_kwargs": {"endpoint_url": url, "region_name": "us-east-1"}}),
    Kind.EXPERIMENT_TRACKER: stack.TRACKER,
    Kind.MODEL_REGISTRY: stack.REGISTRY,
}
try:
    made = client.get_stack("processes", allow_name_prefix_match=False)
except KeyError:
    made = client.create_stack("processes", components=parts)
os.environ["ZENML_ACTIVE_STACK_ID"] = str(made.id)
os.environ["MEDFLOW_ON"] = "processes"
from medflow.config.reading import load
from pipelines.training import training
config = load("phantom", json.loads(sys.argv[1]))
try:
    response = training(config)()
finally:
    last = client.list_pipeline_runs(sort_by="desc:created", size=1, hydrate=True).items[0]
    steps = {name: str(step.status.value) for name, step in last.steps.items()}
    digest = None
    if "train_monai_unet" in last.steps and last.steps["train_monai_unet"].outputs:
        bundle = last.steps["train_monai_unet"].outputs["trained"][0].load()
        digest = bundle.card.weights_digest
    print("RESULT " + json.dumps({"status": str(last.status.value), "steps": steps, "weights": digest}))
"""

#: The same run on the local stack, all steps in one process.
ALONE = """
import json, sys
from medflow.config.reading import load
from medflow.platform import runs, stack
outcome = runs.run(load("phantom", json.loads(sys.argv[1])))
steps = stack.client().get_pipeline_run(outcome.run_id).steps
bundle = steps["train_monai_unet"].outputs["trained"][0].load()
print("RESULT " + json.dumps({"weights": bundle.card.weights_digest}))
"""


def run(home: Path, *overrides: str, script: str = RUN, kill: str = "") -> dict:
    environment = {
        **os.environ,
        "MEDFLOW_HOME": str(home),
        "ZENML_CONFIG_PATH": str(home / "zenml" / "config"),
        "ZENML_LOCAL_STORES_PATH": str(home / "zenml" / "stores"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "TEST_KILL_STEP": kill,
    }
    command = [sys.executable, str(home.parent / "run.py"), json.dumps([*SMALL, *overrides])]
    (home.parent / "run.py").write_text(script)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


@pytest.fixture
def gateway(tmp_path: Path):
    with s3.server(tmp_path) as url:
        yield url


@pytest.mark.timeout(2400)  # two dozen processes, one after another: minutes on a quiet machine
def test_each_step_alone_and_a_killed_training_resumes_in_a_new_process(gateway, tmp_path):
    """Training is killed at its first checkpoint and goes on elsewhere; its weights equal those of a run left alone.

    That it goes on although ingest is then done by two shards shows that these make the content of one.
    """
    settings = ("train.epochs=3", "train.checkpoint_seconds=0", "prune.enabled=false", "quantize.enabled=false")
    killed = run(tmp_path / "home", *settings, kill="train_monai_unet")
    assert killed["status"] == "failed"
    assert s3.has_checkpoint()
    resumed = run(tmp_path / "home", *settings, "ingest.shards=2")
    assert resumed["status"] == "completed"
    assert {resumed["steps"][name] for name in ("ingest_shard_0", "ingest_shard_1", "ingest")} == {"completed"}
    assert {resumed["steps"][name] for name in ("validate", "split", "normalize")} == {"cached"}
    assert set(resumed["steps"]) >= {"train_monai_unet", "package", "promote", "record"}
    assert not s3.has_checkpoint(), "a finished step leaves no checkpoint"
    # In a process of its own as well: other tests set the number of threads, on which the last bits depend.
    alone = run(tmp_path / "alone", *settings, script=ALONE)
    assert resumed["weights"] == alone["weights"]

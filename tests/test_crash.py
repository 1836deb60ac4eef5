"""A whole run is killed in the middle of training; the next one says so and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_pipeline import SMALL

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import json, sys
from medflow.config.reading import load
from medflow.platform import runs, stack, trackers
outcome = runs.run(load("phantom", json.loads(sys.argv[1])))
statuses = [str(run.status.value) for run in stack.client().list_pipeline_runs(sort_by="asc:created").items]
mlflow = trackers.client()
found = mlflow.search_runs([item.experiment_id for item in mlflow.search_experiments()])
parents = [run for run in found if run.data.tags.get(trackers.KIND_TAG) == "pipeline"]
cached = [step.name for step in outcome.steps if step.cached]
print("RESULT " + json.dumps([statuses, sorted(run.info.status for run in parents), cached]))
"""
SETTINGS = (*SMALL, "train.epochs=12", "train.checkpoint_seconds=0", "prune.enabled=false", "quantize.enabled=false")


def start(home: Path) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ZENML_")}
    return subprocess.Popen(
        [sys.executable, str(home.parent / "run.py"), json.dumps(SETTINGS)],
        env={**variables, "MEDFLOW_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def complete(checkpoints: Path) -> bool:
    return any(path.is_file() and not path.name.endswith(".part") for path in checkpoints.rglob("*"))


def test_a_killed_run_is_told_and_gone_on_with(tmp_path):
    home = tmp_path / "home"
    (tmp_path / "run.py").write_text(RUN)
    killed = start(home)
    checkpoints = home / "zenml" / "stores" / "medflow_artifacts" / "checkpoints"
    deadline = time.monotonic() + 300
    while not complete(checkpoints) and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    again = start(home)
    out, said = again.communicate(timeout=300)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    assert lines, said[-3000:]
    statuses, tracked, cached = json.loads(lines[-1].removeprefix("RESULT "))
    assert statuses == ["failed", "completed"]
    assert tracked == ["FINISHED", "KILLED"]
    assert set(cached) == {"ingest", "validate", "split", "normalize"}
    assert "training goes on in stage 1" in said, said[-3000:]
    assert not any(path.is_file() for path in checkpoints.rglob("*"))

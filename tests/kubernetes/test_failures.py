"""A step that cannot run says why in one line, and nothing waits for ever; a run that is stopped leaves nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import chain
from typing import Any

import pytest
from clusters import RUNS, Cluster, Servers
from commands import TRAIN, Medflow, finished, run_id_of
from mlflow import MlflowClient

pytestmark = [pytest.mark.timeout(3600)]


def test_out_of_memory_is_told_with_its_limit_and_not_retried(first: dict[str, Any], applied: Medflow) -> None:
    done = applied(*applied.words("train.seed=11", memory="200Mi"))
    assert done.returncode != 0
    assert "OOMKilled" in done.stderr and "200Mi" in done.stderr
    kept = applied.objects(f"runs/{run_id_of(done.stderr)}/pods/")
    assert len([name for name in kept if "train" in name]) == 2, "one pod, its log and its state"


def test_what_a_step_raised_is_the_error_it_is_not_tried_again_and_the_mlflow_run_is_closed(
    first: dict[str, Any], applied: Medflow, servers: Servers
) -> None:
    done = applied(*applied.words("validate.tiny=error", "validate.tiny_pixels=5000"))
    assert done.returncode != 0
    assert "attempt 2" not in done.stderr
    assert "step validate: " in done.stderr.splitlines()[-2] and "5000" in done.stderr.splitlines()[-2]
    assert _ending(servers, run_id_of(done.stderr)) == "FAILED"


def test_a_step_that_no_node_takes_ends_at_its_deadline_with_the_scheduler_s_words(
    first: dict[str, Any], applied: Medflow
) -> None:
    done = applied(*applied.words("split.seed=3", timeout=40, split_on="{disk: nowhere}"))
    assert done.returncode != 0
    assert "split waits: unschedulable" in done.stderr
    assert "not done within its timeout of 40 s; it waited: unschedulable" in done.stderr.splitlines()[-2]


def test_an_image_that_is_not_there_is_told(first: dict[str, Any], applied: Medflow) -> None:
    with applied.other_stack("medflow-step:", "medflow-step:absent-"):
        done = applied(*applied.words())
    assert done.returncode != 0
    assert "ImagePullBackOff" in done.stderr and "medflow-step:absent-" in done.stderr
    assert not [
        pod
        for pod in chain.from_iterable(applied.pods(run_id_of(done.stderr)).values())
        if "deletionTimestamp" not in pod["metadata"]
    ]


#: medflow's command line, but that something of its pods is lost on the way to ZenML's settings.
LOST = """
from medflow.platform.kubernetes import settings
whole = settings._of_step
def lost(*given):
    found = whole(*given)
    {loss}
    return found
settings._of_step = lost
from medflow.cli import main
main()
"""
PODS = 'found["settings"]["orchestrator"]["pod_settings"]'
#: What is compared with the pods is lost too, or they would be found to lack it before they are refused.
INSECURE = f'{PODS}["container_security_context"] = {{}}; found["extra"] = {{}}'


def _with_loss(applied: Medflow, loss: str, *settings: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LOST.format(loss=loss), *applied.words(*settings)]
    return subprocess.run(command, env=applied.environment, cwd=applied.folder, capture_output=True, text=True)


def test_a_setting_that_was_dropped_on_the_way_fails_the_run(first: dict[str, Any], applied: Medflow) -> None:
    done = _with_loss(applied, f'{PODS}["resources"]["limits"] = {{}}', "split.seed=5")
    assert done.returncode != 0
    assert "memory (limits): asked " in done.stderr.splitlines()[-2], done.stderr


def test_pods_that_pod_security_refuses_are_told_at_once(first: dict[str, Any], applied: Medflow) -> None:
    done = _with_loss(applied, INSECURE, "split.seed=4")
    assert done.returncode != 0
    assert "refused by Pod Security" in done.stderr.splitlines()[-2]
    assert "allowPrivilegeEscalation" in done.stderr.splitlines()[-2]


def test_a_run_that_is_stopped_leaves_no_pod_no_secret_and_no_open_mlflow_run(
    first: dict[str, Any], applied: Medflow, servers: Servers, cluster: Cluster
) -> None:
    with applied.start(*applied.words("train.epochs=500", "train.patience=500", "train.seed=12")) as process:
        until = time.monotonic() + 600
        while not applied.running(TRAIN) and time.monotonic() < until:
            time.sleep(1)
        assert _token_secrets(cluster), "there is one while a run goes on"
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.returncode == 130
    run_id = run_id_of(done.stderr)
    until = time.monotonic() + 90
    while applied.pods(run_id) and time.monotonic() < until:
        time.sleep(1)
    assert not applied.pods(run_id)
    assert servers.token_secret(run_id) not in _token_secrets(cluster)
    kept = applied.objects(f"runs/{run_id}/pods/")
    assert any("train" in name and name.endswith(".log") for name in kept) and "events.json" in kept, kept
    assert _ending(servers, run_id) == "KILLED"
    listed = applied("runs", "--on", str(applied.place), "--json")
    (status,) = [item["status"] for item in json.loads(listed.stdout) if item["run_id"] == run_id]
    assert status == "stopped"


def _token_secrets(cluster: Cluster) -> list[str]:
    names = [item["metadata"]["name"] for item in cluster.json("-n", RUNS, "get", "secrets")["items"]]
    return [name for name in names if name.startswith("zenml-token-")]


def _ending(servers: Servers, run_id: str) -> str:
    """How MLflow says that the run of a pipeline run ended."""
    client = MlflowClient(tracking_uri=servers.mlflow)
    experiment = client.get_experiment_by_name("phantom")
    assert experiment is not None
    query = f"tags.`zenml.pipeline_run_id` = '{run_id}' and tags.`medflow.kind` = 'pipeline'"
    (run,) = client.search_runs([experiment.experiment_id], query)
    return str(run.info.status)

"""A dataset's whole pipeline in pods: artifacts in S3, metrics in MLflow, lineage in ZenML, hits of the cache."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from clusters import BUCKET, RUNS, Cluster, Servers
from commands import TRAIN, Medflow, outcome_of
from mlflow import MlflowClient

pytestmark = [pytest.mark.timeout(3600)]
UNCACHED = {"resolve", "incumbent", "promote", "record"}


def test_a_second_apply_changes_nothing(applied: Medflow) -> None:
    done = applied("stack", "apply", str(applied.stack), "--json")
    assert {item["outcome"] for item in json.loads(done.stdout)} == {"unchanged"}


def test_the_check_finds_nothing_amiss(applied: Medflow) -> None:
    applied.words()
    done = applied("stack", "check", str(applied.stack), "--on", str(applied.place), "--json")
    assert done.returncode == 0, done.stdout
    assert {"store, from a pod", "mlflow, from a pod"} <= {item["check"] for item in json.loads(done.stdout)}


def test_the_whole_pipeline_runs_in_pods(first: dict[str, Any], applied: Medflow) -> None:
    assert first["status"] == "completed"
    assert first["metrics"] and first["model"].startswith("phantom@")
    assert not any(step["cached"] for step in first["steps"])
    pods = applied.pods(first["run_id"])
    assert {name for name in pods if name} == {step["name"] for step in first["steps"]}
    spec = pods[TRAIN][0]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "3Gi"}
    assert spec["serviceAccountName"] == "medflow-step"
    priorities = {name: {pod["spec"]["priorityClassName"] for pod in several} for name, several in pods.items()}
    assert priorities.pop("") == {"medflow-orchestrator"}
    assert set.union(*priorities.values()) == {"medflow-step"}


def test_the_server_knows_from_which_images_the_model_came(first: dict[str, Any], servers: Servers) -> None:
    """Backwards from the registered model: each step and what it read, until nothing was read."""
    steps = servers.steps(first["run_id"])
    made_by = {artifact: name for name, step in steps.items() for artifact in _artifacts(step, "outputs")}
    behind: set[str] = set()
    reached = {"package"}
    while reached:
        behind |= reached
        reached = {made_by[artifact] for name in reached for artifact in _artifacts(steps[name], "inputs")} - behind
    assert {"resolve", "ingest", "validate", "split", "normalize", TRAIN, "choose", "package"} <= behind


def _artifacts(step: dict[str, Any], side: str) -> set[str]:
    """What a step read or wrote, by the ids of the artifacts' versions."""
    return {version["id"] for versions in step["resources"][side].values() for version in versions}


def test_metrics_are_in_the_mlflow_server(first: dict[str, Any], servers: Servers) -> None:
    client = MlflowClient(tracking_uri=servers.mlflow)
    experiment = client.get_experiment_by_name("phantom")
    assert experiment is not None
    query = f"tags.`zenml.pipeline_run_id` = '{first['run_id']}'"
    found = client.search_runs([experiment.experiment_id], query)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert any(run.data.metrics for run in found)


def test_logs_and_events_of_every_pod_are_kept(first: dict[str, Any], applied: Medflow) -> None:
    kept = applied.objects(f"runs/{first['run_id']}/pods/")
    names = [pod["metadata"]["name"] for pods in applied.pods(first["run_id"]).values() for pod in pods]
    assert names
    assert all(kept.get(f"{name}.log", 0) > 0 and kept.get(f"{name}.json", 0) > 0 for name in names)
    assert kept["events.json"] > len("[]")


def test_the_token_is_gone_with_the_run(first: dict[str, Any], cluster: Cluster, servers: Servers) -> None:
    names = [item["metadata"]["name"] for item in cluster.json("-n", RUNS, "get", "secrets")["items"]]
    assert servers.token_secret(first["run_id"]) not in names


@pytest.mark.quiet
def test_a_second_run_starts_only_the_uncached_steps(first: dict[str, Any], applied: Medflow) -> None:
    started = time.monotonic()
    second = outcome_of(applied(*applied.words()))
    print(f"second run: {time.monotonic() - started:.0f} s")
    assert {step["name"] for step in second["steps"] if not step["cached"]} == UNCACHED
    assert {name for name in applied.pods(second["run_id"]) if name} == UNCACHED


def test_a_damaged_artifact_is_no_hit_in_the_cluster(first: dict[str, Any], applied: Medflow) -> None:
    """The check of hits runs in the orchestrator's pod: a step whose stored output lost a file runs again."""
    key = next(key for key in applied.objects("normalize/") if key.endswith("index.json"))
    store = applied.cluster.store.client
    store.delete_object(Bucket=BUCKET, Key=f"{applied.store_folder}/normalize/{key}")
    again = outcome_of(applied(*applied.words()))
    assert "normalize" in {step["name"] for step in again["steps"] if not step["cached"]}

"""Where images and weights come from in a cluster: a volume, and files of the machine that starts the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from clusters import RUNS, Cluster
from commands import SMALL, Medflow, outcome_of
from safetensors.torch import save_file

pytestmark = [pytest.mark.timeout(3600)]
CLAIM, IMAGES, DATASET = "medflow-test-images", "/images", "lung_disease"
TRAIN = "train_test_resnet"


@pytest.fixture(scope="module")
def volume(cluster: Cluster, step_image: str) -> Iterator[str]:
    """A claim with a twin of a dataset in it, written by a pod."""
    made = [_claim(), _writer(step_image)]
    cluster.kubectl("-n", RUNS, "apply", "-f", "-", stdin=yaml.safe_dump_all(made))
    cluster.kubectl("-n", RUNS, "wait", "--for=condition=complete", f"job/{CLAIM}", "--timeout=600s")
    yield CLAIM
    cluster.run("kubectl", "-n", RUNS, "delete", "--wait=false", f"job/{CLAIM}", f"pvc/{CLAIM}")


@pytest.fixture(scope="module")
def run(applied: Medflow, volume: str) -> dict[str, Any]:
    """A run on that volume, of a model that starts from a file of this machine."""
    applied.words()
    place = yaml.safe_load(applied.place.read_text())
    for step in ("resolve", "ingest", "ingest_shard"):
        place["steps"][step] = {"volumes": [{"claim": volume, "path": IMAGES}]}
    applied.place.write_text(yaml.safe_dump(place))
    weights = applied.folder / "mine.safetensors"
    save_file(timm.create_model("test_resnet", in_chans=1, num_classes=0).state_dict(), weights)
    models = [{"kind": "timm", "name": "test_resnet", "size": 32, "pretrained": str(weights), "stats": "unit"}]
    settings = [word for word in SMALL if not word.startswith(("source.", "models."))]
    return outcome_of(
        applied(
            "run", DATASET, *settings, f"models={json.dumps(models)}", "source.kind=folder",
            f"source.path={IMAGES}/{DATASET}", "--on", str(applied.place), "--json",
        )
    )  # fmt: skip


def test_a_source_is_read_from_a_volume_and_nothing_is_uploaded(run: dict[str, Any], applied: Medflow) -> None:
    assert run["status"] == "completed" and run["metrics"]
    assert not applied.objects("sources/")
    (pod,) = applied.pods(run["run_id"])["ingest"]
    (found,) = [item for item in pod["spec"]["volumes"] if "persistentVolumeClaim" in item]
    assert found["persistentVolumeClaim"] == {"claimName": CLAIM, "readOnly": True}


def test_weights_of_this_machine_reach_the_training_under_their_own_name(run: dict[str, Any], applied: Medflow) -> None:
    (sent,) = applied.objects("models/")
    assert sent.endswith("/mine.safetensors")
    done = applied("report", run["run_id"], "--on", str(applied.place), "--to", str(applied.folder / "report"))
    assert done.returncode == 0, done.stderr
    pages = "".join(path.read_text() for path in Path(applied.folder / "report").rglob("*.html"))
    assert "file mine.safetensors, sha256:" in pages
    assert "started from mine.safetensors" in pages and str(applied.folder) not in pages


def test_what_a_pod_said_is_printed(run: dict[str, Any], applied: Medflow) -> None:
    done = applied("logs", run["run_id"], TRAIN, "--on", str(applied.place), "--json")
    assert done.returncode == 0, done.stderr
    (log,) = json.loads(done.stdout)
    assert log["step"] == TRAIN and "epoch" in log["log"]
    listed = applied("runs", "--on", str(applied.place), "--json")
    (pods,) = [item["pods"] for item in json.loads(listed.stdout) if item["run_id"] == run["run_id"]]
    assert pods.endswith(f"runs/{run['run_id']}/pods")


def _claim() -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}


def _writer(image: str) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-m", "medflow.cli", "phantom", DATASET, "--to", f"{IMAGES}/{DATASET}", "--images", "90"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "images", "mountPath": IMAGES}, {"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "images", "persistentVolumeClaim": {"claimName": CLAIM}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }  # fmt: skip
    spec = {"backoffLimit": 1, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": CLAIM}, "spec": spec}

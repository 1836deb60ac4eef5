"""Where images and weights come from in a cluster: a volume, this machine, the store, Kaggle.

The images are the same each time: a whole run reads them from this machine, and the first steps of others elsewhere.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import timm
import yaml
from clusters import BUCKET, RUNS, Cluster, Servers
from commands import SMALL, Data, Medflow, outcome_of, registered, user_of
from kaggle_server import ENVIRONMENT, TOKEN, serving
from proxy import proxy
from safetensors.torch import save_file

pytestmark = [pytest.mark.timeout(3600)]
CLAIM, IMAGES, DATASET = "medflow-test-images", "/images", "lung_disease"
TRAIN = "train_test_resnet"
#: What reads a source, and where its images lay in the runs before; the same images are validated once.
READING = {"resolve", "ingest", "split"}
WEIGHTS, IMAGE_COUNT = "mine.safetensors", "90"
IN_KAGGLE = "khaleddev/lungs-disease-dataset-broken"


@pytest.fixture(scope="module")
def volume(cluster: Cluster, step_image: str) -> Iterator[str]:
    """A claim with a twin of a dataset in it, written by a pod."""
    made = [_claim(), _writer(step_image)]
    cluster.kubectl("-n", RUNS, "apply", "-f", "-", stdin=yaml.safe_dump_all(made))
    cluster.kubectl("-n", RUNS, "wait", "--for=condition=complete", f"job/{CLAIM}", "--timeout=600s")
    yield CLAIM
    cluster.run("kubectl", "-n", RUNS, "delete", "--wait=false", f"job/{CLAIM}", f"pvc/{CLAIM}")


@pytest.fixture(scope="module")
def applied(
    cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Medflow]:
    folder = tmp_path_factory.mktemp("sources")
    with registered(user_of(cluster, servers, step_image, folder, f"test-sources-{int(time.time())}")) as found:
        yield found


@pytest.fixture(scope="module")
def ready(applied: Medflow, servers: Servers) -> Medflow:
    """With a place whose reading steps have the volume and Kaggle's secret, and weights of this machine."""
    servers.forget(DATASET)  # whose split would begin where another test's did, in a store that is gone
    applied.words()
    place = yaml.safe_load(applied.place.read_text())
    for step in ("resolve", "ingest", "ingest_shard"):
        place["steps"][step] = {"volumes": [{"claim": CLAIM, "path": IMAGES}], "secrets": [CLAIM]}
    applied.place.write_text(yaml.safe_dump(place))
    save_file(timm.create_model("test_resnet", in_chans=1, num_classes=0).state_dict(), applied.folder / WEIGHTS)
    return applied


def settings_of(medflow: Medflow, *source: str) -> tuple[str, ...]:
    weights = str(medflow.folder / WEIGHTS)
    models = [{"kind": "timm", "name": "test_resnet", "size": 32, "pretrained": weights, "stats": "unit"}]
    kept = [word for word in SMALL if not word.startswith(("source.", "models."))]
    return (*kept, f"models={json.dumps(models)}", *source)


@pytest.fixture(scope="module")
def twin(applied: Medflow) -> Path:
    """The images of the volume, on this machine."""
    folder = applied.folder / "twin"
    assert applied.elsewhere("twins")("phantom", DATASET, "--to", str(folder), "--images", IMAGE_COUNT).returncode == 0
    return folder


@pytest.fixture(scope="module")
def on_volume(ready: Medflow, volume: str) -> Data:
    """Read before anything is uploaded."""
    assert not ready.objects("sources/")
    data = ready.read_data(DATASET, settings_of(ready, "source.kind=folder", f"source.path={IMAGES}/{DATASET}"))
    assert not ready.objects("sources/")
    return data


@pytest.fixture(scope="module")
def run(on_volume: Data, ready: Medflow, twin: Path) -> dict[str, Any]:
    """A run on a folder of this machine, of a model that starts from a file of this machine."""
    words = ("run", DATASET, *settings_of(ready), "--source", str(twin), "--on", str(ready.place), "--json")
    return outcome_of(ready(*words))


def test_a_source_is_read_from_a_volume_and_nothing_is_uploaded(on_volume: Data, applied: Medflow) -> None:
    assert {"resolve", "ingest", "validate"} <= set(on_volume.ran)
    (pod,) = applied.pods(on_volume.run_id)["ingest"]
    (found,) = [item for item in pod["spec"]["volumes"] if "persistentVolumeClaim" in item]
    assert found["persistentVolumeClaim"] == {"claimName": CLAIM, "readOnly": True}


def test_a_folder_of_this_machine_is_uploaded_by_content(run: dict[str, Any], ready: Medflow) -> None:
    assert run["status"] == "completed" and run["metrics"]
    cached = {step["name"] for step in run["steps"] if step["cached"]}
    assert "validate" in cached and not cached & {"resolve", "ingest"}
    sent = ready.objects("sources/")
    assert len([name for name in sent if name.endswith((".png", ".jpg", ".jpeg"))]) == int(IMAGE_COUNT), sent


def test_weights_of_this_machine_reach_the_training_under_their_own_name(run: dict[str, Any], applied: Medflow) -> None:
    (sent,) = applied.objects("models/")
    assert sent.endswith(f"/{WEIGHTS}")
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


def test_an_archive_in_the_store_is_read_by_the_pods(run: dict[str, Any], ready: Medflow, twin: Path) -> None:
    archive = shutil.make_archive(str(ready.folder / "archive"), "zip", twin)
    key = f"{ready.store_folder}/elsewhere/twin.zip"
    ready.cluster.store.client.upload_file(archive, BUCKET, key)
    data = ready.read_data(DATASET, settings_of(ready, "source.kind=s3", f"source.path=s3://{BUCKET}/{key}"))
    assert {"resolve", "ingest"} <= set(data.ran) <= READING


def test_a_dataset_of_kaggle_s_is_fetched_by_a_pod_with_the_secret_s_token(
    run: dict[str, Any], ready: Medflow, twin: Path, servers: Servers
) -> None:
    """Kaggle's client knows one address for tests, this machine's own: pods reach it by a proxy."""
    archive = shutil.make_archive(str(ready.folder / "kaggle"), "zip", twin)
    store = urlsplit(ready.cluster.store.url).hostname or ""
    near = ",".join([store, *(urlsplit(url).hostname or "" for url in (servers.zenml, servers.mlflow))])
    with serving() as kaggle, proxy(store) as url:
        kaggle.publish(IN_KAGGLE, {3: Path(archive).read_bytes()})
        kaggle.plant(IN_KAGGLE, private=True)
        given = {**ENVIRONMENT, "KAGGLE_API_TOKEN": TOKEN, "HTTP_PROXY": url, "NO_PROXY": near, "no_proxy": near}
        words = [f"--from-literal={name}={value}" for name, value in given.items()]
        ready.cluster.kubectl("-n", RUNS, "create", "secret", "generic", CLAIM, *words)
        try:
            data = ready.read_data(DATASET, settings_of(ready, "source.kind=kaggle"))
        finally:
            ready.cluster.kubectl("-n", RUNS, "delete", "secret", CLAIM)
        assert kaggle.requests("storage")
    assert {"resolve", "ingest"} <= set(data.ran) <= READING
    logs = [log for step in READING for log in ready.kept_logs(data.run_id, step)]
    assert logs and not any(TOKEN in log for log in logs)


def _claim() -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}


def _writer(image: str) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-m", "medflow.cli", "phantom", DATASET, "--to", f"{IMAGES}/{DATASET}", "--images",
                    IMAGE_COUNT],
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

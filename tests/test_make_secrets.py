"""infra/scripts/make-secrets keeps what the cluster has, and changes nothing where the cluster does not answer.

tests/kubernetes/test_manifests.py calls it on a real cluster; here a planted `kubectl` can fail when it should.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import planted_kubectl
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "infra" / "scripts" / "make-secrets"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
OWN = {
    "AWS_ENDPOINT_URL": "http://10.0.0.5:7070", "AWS_DEFAULT_REGION": "eu-north-1", "BUCKET": "lungs",
    "ZENML_DATABASE_URL": "mysql://zenml:a@db.example:3306/zenml",
    "MLFLOW_DATABASE_URL": "postgresql://mlflow:b@db.example:5432/mlflow",
}  # fmt: skip
SERVERS = ("zenml-server", "mlflow-server")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cluster without a Secret, and the `kubectl` that speaks to it."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -IS\n{Path(planted_kubectl.__file__).read_text()}")
    program.chmod(0o755)
    return tmp_path


def make(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    given = {"PATH": path, "KUBECTL_CLUSTER": str(folder / "cluster"), **KEYS, **variables}
    return subprocess.run([SCRIPT], env=given, capture_output=True, text=True)


def made(folder: Path, **variables: str) -> dict[str, Any]:
    """Everything in the cluster after a call that must succeed."""
    done = make(folder, **variables)
    assert done.returncode == 0, done.stderr
    return everything(folder)


def everything(folder: Path) -> dict[str, Any]:
    files = (folder / "cluster").rglob("*.json")
    return {str(path.relative_to(folder / "cluster")): json.loads(path.read_text()) for path in files}


def secret(cluster: dict[str, Any], name: str) -> dict[str, str]:
    data = cluster[f"medflow-platform/secret/{name}.json"]["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def of_store(cluster: dict[str, Any]) -> dict[str, str]:
    """The settings of the object store; neither they nor its keys lie where pods of runs could take them."""
    assert {name.partition("/")[0] for name in cluster if "medflow-store" in name} == {"medflow-platform"}
    return dict(cluster["medflow-platform/configmap/medflow-store.json"]["data"])


def exported_on_the_page() -> dict[str, str]:
    """Every variable that README.md has its reader export, as a server's address."""
    page = (ROOT / "README.md").read_text().partition("\n## On Kubernetes\n")[2].partition("\n## ")[0]
    lines = [line for line in page.splitlines() if line.startswith("export ")]
    names = {name for line in lines for name in re.findall(r"([A-Z_]+)=", line)}
    assert "ZENML_STORE_URL" in names
    return dict.fromkeys(names, "http://10.0.0.9")


def run_servers(folder: Path) -> None:
    for name in SERVERS:
        meta = {"name": name, "namespace": "medflow-platform", "resourceVersion": 1}
        path = folder / "cluster" / "medflow-platform" / "deployment" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"kind": "deployment", "metadata": meta}))


def restarts(folder: Path) -> list[int]:
    found = everything(folder)
    return [found[f"medflow-platform/deployment/{name}.json"].get("restarts", 0) for name in SERVERS]


def test_the_first_call_makes_keys_and_the_addresses_of_the_dev_overlay(folder: Path) -> None:
    cluster = made(folder)
    zenml, mlflow = (secret(cluster, name) for name in SERVERS)
    keys = [zenml[name] for name in ("admin-password", "jwt-key", "secrets-key", "db-password")] + [
        mlflow["db-password"]
    ]
    assert len(set(keys)) == 5 and all(re.fullmatch(r"[0-9a-f]{64}", key) for key in keys)
    assert zenml["store-url"] == f"mysql://zenml:{zenml['db-password']}@mariadb:3306/zenml"
    assert mlflow["store-url"] == f"postgresql://mlflow:{mlflow['db-password']}@postgres:5432/mlflow"
    assert of_store(cluster) == {
        "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_ARTIFACTS_DESTINATION": "s3://medflow/mlflow",
    }  # fmt: skip


@pytest.mark.parametrize("first", [{}, OWN], ids=["dev", "own"])
def test_a_second_call_changes_nothing_whatever_the_page_has_exported(folder: Path, first: dict[str, str]) -> None:
    before = made(folder, **first)
    run_servers(folder)
    assert before.items() <= made(folder, **exported_on_the_page()).items()
    assert restarts(folder) == [0, 0]


def test_what_is_given_becomes_what_is_there(folder: Path) -> None:
    first = made(folder)
    cluster = made(folder, **OWN, KAGGLE_API_TOKEN="t")
    assert of_store(cluster) == {
        "AWS_ENDPOINT_URL": "http://10.0.0.5:7070", "AWS_DEFAULT_REGION": "eu-north-1",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://lungs/mlflow",
    }  # fmt: skip
    zenml = secret(cluster, "zenml-server")
    assert zenml == secret(first, "zenml-server") | {"store-url": OWN["ZENML_DATABASE_URL"]}
    assert secret(cluster, "mlflow-server")["store-url"] == OWN["MLFLOW_DATABASE_URL"]
    assert "medflow/secret/kaggle.json" in cluster
    assert "AWS_ENDPOINT_URL" not in of_store(made(folder, AWS_ENDPOINT_URL="")), "Amazon's own"


@pytest.mark.parametrize(
    "question",
    [
        "get secret/zenml-server --ignore-not-found --request-timeout=30s -o jsonpath={.data.secrets-key}",
        "get secret/mlflow-server",
        "get configmap/medflow-store",
        "{.metadata.resourceVersion}",
    ],
)
def test_no_answer_changes_nothing(folder: Path, question: str) -> None:
    before = made(folder, **OWN)
    done = make(folder, KUBECTL_FAILS=question, AWS_SECRET_ACCESS_KEY="another")
    assert done.returncode == 1
    assert "TLS handshake timeout" in done.stderr
    assert "nothing was changed" in done.stderr and "hint: " in done.stderr
    assert everything(folder) == before


def test_no_answer_makes_nothing(folder: Path) -> None:
    assert make(folder, KUBECTL_FAILS="get").returncode == 1
    assert everything(folder) == {}


@pytest.mark.parametrize(("name", "scheme"), [("ZENML_DATABASE_URL", "http"), ("MLFLOW_DATABASE_URL", "https")])
def test_a_web_server_is_no_database(folder: Path, name: str, scheme: str) -> None:
    done = make(folder, **{name: f"{scheme}://10.0.0.9"})
    assert done.returncode == 1
    assert f"error: {name}: expected " in done.stderr and "found that of a web server" in done.stderr
    assert everything(folder) == {}


@pytest.mark.parametrize(
    ("given", "restarted"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, [0, 1]),
        ({"AWS_ENDPOINT_URL": "http://10.0.0.6:7070"}, [0, 1]),
        ({"ZENML_DATABASE_URL": "mysql://elsewhere/zenml"}, [1, 0]),
    ],
)
def test_a_server_whose_secret_changed_is_restarted(folder: Path, given: dict[str, str], restarted: list[int]) -> None:
    made(folder)
    run_servers(folder)
    made(folder, **given)
    assert restarts(folder) == restarted


def test_a_restart_that_fails_says_what_to_do(folder: Path) -> None:
    made(folder)
    run_servers(folder)
    done = make(folder, KUBECTL_FAILS="get deployment/mlflow-server", AWS_SECRET_ACCESS_KEY="another")
    assert done.returncode == 1
    assert "kubectl -n medflow-platform rollout restart deployment" in done.stderr

"""The images as `make images` builds them: who they run as, what they hold, and what a change of code costs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from clusters import ROOT, Cluster

#: Bytes. "Well under 1 GB".
SERVING_BYTES = 800_000_000


def _inside(cluster: Cluster, image: str, *command: str) -> str:
    words = ["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", image]
    done = cluster.run(*words, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["step", "serving", "zenml", "mlflow", "mariadb", "postgres"])
def test_no_image_runs_as_root(cluster: Cluster, tag: str, name: str) -> None:
    assert _inside(cluster, f"{cluster.registry}/medflow-{name}:{tag}", "id", "-u") == "1000"


def test_the_registry_has_every_image(cluster: Cluster, tag: str) -> None:
    for name in ("step", "serving", "zenml", "mlflow", "mariadb", "postgres"):
        done = cluster.run("docker", "manifest", "inspect", "--insecure", f"{cluster.registry}/medflow-{name}:{tag}")
        assert done.returncode == 0, done.stderr


def test_a_step_computes_without_a_gpu(cluster: Cluster, step_image: str) -> None:
    code = "import torch; print(torch.version.cuda, torch.cuda.is_available(), float(torch.ones(2, 2).sum()))"
    cuda, available, total = _inside(cluster, step_image, "python", "-c", code).split()
    assert cuda.startswith("1") and (available, total) == ("False", "4.0")


def test_a_step_finds_medflow_where_zenml_looks(cluster: Cluster, step_image: str) -> None:
    code = "import os, pipelines.training, medflow; print(medflow.__file__, os.environ['ZENML_CUSTOM_SOURCE_ROOT'])"
    answer = _inside(cluster, step_image, "python", "-c", code)
    assert answer.splitlines()[-1] == "/app/medflow/__init__.py /app"


def test_the_service_image_is_small_and_has_no_torch(cluster: Cluster, tag: str) -> None:
    image = f"{cluster.registry}/medflow-serving:{tag}"
    size = json.loads(cluster.run("docker", "image", "inspect", image).stdout)[0]["Size"]
    assert size < SERVING_BYTES
    code = "import importlib.util as u; print([n for n in ('torch', 'onnxruntime', 'bentoml') if u.find_spec(n)])"
    assert _inside(cluster, image, "python", "-c", code) == "['onnxruntime', 'bentoml']"


def test_changed_code_is_one_small_layer_in_seconds(cluster: Cluster, step_image: str, tmp_path: Path) -> None:
    context = tmp_path / "context"
    for name in ("medflow", "steps", "materializers", "pipelines", "configs", "infra"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock", ".dockerignore"):
        shutil.copy(ROOT / name, context)
    (context / "medflow" / "errors.py").open("a").write("\n# changed\n")
    began = time.monotonic()
    words = ("docker", "build", "--network", "none", "--tag", "medflow-test-rebuild")
    done = cluster.run(*words, "--file", context / "infra/docker/step/Dockerfile", context)
    seconds = time.monotonic() - began
    try:
        assert done.returncode == 0, done.stderr  # without a network: nothing is installed again
        old = _layers(cluster, step_image)
        new = _layers(cluster, "medflow-test-rebuild")
        shared = sum(a == b for a, b in zip(old, new, strict=True))
        assert shared >= len(old) - 3
        print(f"rebuilt in {seconds:.1f} s, {shared} of {len(old)} layers kept")
    finally:
        cluster.run("docker", "image", "rm", "medflow-test-rebuild")


def _layers(cluster: Cluster, image: str) -> list[str]:
    return json.loads(cluster.run("docker", "image", "inspect", image).stdout)[0]["RootFS"]["Layers"]

"""The import rules of the house: import-linter's contracts, and those that a glob says better than a list."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medflow import datasets

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("medflow", "materializers", "steps", "pipelines")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
GROUND = ("records", "errors", "config", "tracking", "progress", "home", "atomic", "cron")
"""What everything stands on. It imports nothing of ours but itself."""
NAMES_A_DATASET = {"medflow/platform/demo.py"}
"""The demonstration is of one dataset."""


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports anywhere in it, functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
        "--no-logo",
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


PLANTED = {
    "medflow/split.py": ("import zenml", "only the platform and its adapters know ZenML and MLflow"),
    "medflow/evaluate.py": ("import mlflow", "only the platform and its adapters know ZenML and MLflow"),
    "medflow/choose.py": ("import medflow.platform.stack", "no domain module imports the platform"),
    "medflow/records/base.py": ("import medflow.split", "within medflow"),
    "medflow/checks/__init__.py": ("import medflow.models", "need no torch"),
    "medflow/decisions.py": ("import pandas", "the service is light"),
    "materializers/bundle.py": ("import steps.split", "one way"),
}


def test_the_contracts_can_break(tmp_path: Path) -> None:
    """One import in the wrong place each; every one is seen, and by the contract that is meant to see it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, (statement, contract) in PLANTED.items():
        path = tmp_path / name
        text = path.read_text()
        path.write_text(f"{text}\n{statement}\n")
        done = lint(tmp_path)
        path.write_text(text)
        broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
        assert any(contract in line for line in broken), (name, broken)


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_stands_on_nothing(name: str) -> None:
    base = ROOT / "medflow" / name
    for path in [base.with_suffix(".py")] if base.with_suffix(".py").exists() else sorted(base.rglob("*.py")):
        ours = {found.split(".")[1] for found in imported(path) if found.startswith("medflow.")}
        assert ours <= set(GROUND), path


def test_datasets_do_not_import_one_another() -> None:
    for path in (ROOT / "medflow" / "datasets").glob("*.py"):
        others = {f"medflow.datasets.{name}" for name in datasets.names()} - {f"medflow.datasets.{path.stem}"}
        assert others.isdisjoint(imported(path)), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_dataset_is_named_in_code(path: Path) -> None:
    """Not in a name, not in a string. Docstrings may give an example; the verb that writes twins is no dataset."""
    relative = path.relative_to(ROOT).as_posix()
    if relative.startswith("medflow/datasets/") or relative in NAMES_A_DATASET:
        return
    words = "|".join(map(re.escape, datasets.names()))
    tree = ast.parse(path.read_text())
    docstrings = {id(node) for node in _docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            text = re.sub(r"medflow phantom", "", node.value)
            if relative == "medflow/cli.py" and text == "phantom":
                continue
            assert not re.search(rf"\b({words})\b", text), f"{relative} line {node.lineno}: {node.value!r}"
        if isinstance(node, ast.Name) and relative not in ("medflow/cli.py", "medflow/commands/data.py"):
            assert node.id.lower() not in datasets.names(), f"{relative} line {node.lineno}"


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    assert not {"pickle", "cloudpickle", "joblib", "dill", "shelve"} & set(imported(path))


def test_there_is_no_grab_bag() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_importing_a_step_needs_no_torch() -> None:
    """Adapters are imported in every process of a run, also where nothing is trained."""
    code = "import sys, medflow.serve, medflow.decisions, medflow.preprocess; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "pandas", "pyarrow", "sklearn", "zenml", "mlflow"} & set(done.stdout.split())


def test_networks_are_built_without_a_trackers_library() -> None:
    """timm imports wandb by itself, which takes a third of its time and leaves folders behind; here it may not."""
    code = (
        "import sys, tiny; from medflow import models; from medflow.pretrained import load_pretrained\n"
        "for model in tiny.TINY.values():\n"
        "    network = models.build(model, (tiny.LABELS,), tiny.preprocess())\n"
        "    load_pretrained(network, model, None)\n"
        "assert {'timm', 'segmentation_models_pytorch', 'monai'} <= set(sys.modules)\n"
        "assert 'wandb' not in sys.modules, 'wandb'\n"
        "import wandb; print(wandb.__name__)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "wandb\n", done.stderr

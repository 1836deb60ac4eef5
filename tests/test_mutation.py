"""The cache rule by real runs: a copy of the code is edited, the same run is started again in a new process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pipeline import SMALL, UNCACHED

from medflow.imports import FIRST_PARTY

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import json, sys
from medflow.config.reading import load
from medflow.platform import runs
outcome = runs.run(load("phantom", json.loads(sys.argv[1])), say=lambda line: None)
print("RAN " + json.dumps([step.name for step in outcome.steps if not step.cached]))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with a state folder of its own, in which everything has run once."""
    root = tmp_path_factory.mktemp("mutation")
    for folder in (*FIRST_PARTY, "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "run.py").write_text(RUN)
    assert "train_monai_unet" in ran(root)
    return root


def ran(root: Path) -> set[str]:
    """The steps that a run of the copy did not take from the cache."""
    settings = [*SMALL, "prune.enabled=false", "quantize.enabled=false"]
    home = root / "home"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ZENML_")}
    done = subprocess.run(
        [sys.executable, "run.py", json.dumps(settings)],
        cwd=root,
        env={**variables, "MEDFLOW_HOME": str(home), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert lines, done.stderr[-3000:]
    return set(json.loads(lines[-1].removeprefix("RAN ")))


@pytest.fixture
def edited(tree: Path) -> Iterator:
    kept: dict[Path, str] = {}

    def edit(module: str, text: str) -> set[str]:
        path = tree / module
        kept[path] = path.read_text()
        path.write_text(kept[path] + text)
        return ran(tree) - UNCACHED

    yield edit
    for path, text in kept.items():
        path.write_text(text)


def test_an_edited_helper_runs_exactly_the_steps_that_reach_it(edited):
    assert edited("medflow/normalize.py", "\n_MUTATION = 1\n") == {"normalize"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("medflow/choose.py", "\n_MUTATION = 1\n", {"select", "choose"}),
        ("medflow/doctor.py", "\n_MUTATION = 1\n", set()),
        ("medflow/train.py", "\n# a comment\n", set()),
    ],
)
def test_other_edits(edited, module, text, expected):
    assert edited(module, text) == expected

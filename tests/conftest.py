"""One state folder for the whole test run, set before anything reads it, and removed at the end.

Nothing of the user is touched: HOME, MEDFLOW_HOME and every store below them are temporary.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STATE = Path(tempfile.mkdtemp(prefix="medflow-tests-"))
for name in [
    name for name in os.environ if name.startswith(("MEDFLOW_HOME", "ZENML_", "MLFLOW_", "KAGGLE", "BENTOML_"))
]:
    del os.environ[name]
os.environ["HOME"] = str(STATE)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores; each with a thread for every core would only wait for the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MEDFLOW_HOME"] = str(STATE / "home")
os.environ.setdefault("MEDFLOW_SAMPLES", str(ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def _state() -> Iterator[None]:
    yield
    shutil.rmtree(STATE, ignore_errors=True)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real samples of the datasets, where this machine has them."""
    folder = Path(os.environ["MEDFLOW_SAMPLES"])
    if not folder.is_dir():
        pytest.skip("no real samples here; the generated twins are tested in any case")
    return folder

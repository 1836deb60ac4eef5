"""Offline twins: any dataset's archive, generated in exactly its layout, at once or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from medflow import datasets
from medflow.config.sections import Declaration
from medflow.datasets import Planted
from medflow.errors import ConfigError
from medflow.records import Generated

FEWEST_IMAGES = 24


def write_twin(name: str, to: Path, generated: Generated, declared: Declaration | None = None) -> Planted:
    """Write the twin of dataset ``name`` to ``to``, a folder that is empty or not there yet.

    ``declared``: how its YAML states a dataset that has no module.
    It is written beside ``to`` and renamed when complete. Returns the faults that were planted.
    Raises ConfigError for an unknown dataset, fewer than 24 images, a negative seed, and where ``to`` holds anything.
    """
    spec = datasets.get(name, declared)
    if generated.images < FEWEST_IMAGES:
        raise ConfigError(
            f"{generated.images} images are too few: every class needs some in each part of the split",
            hint=f"ask for {FEWEST_IMAGES} or more",
        )
    if generated.seed < 0:
        raise ConfigError(f"the seed is {generated.seed}", hint="a seed is 0 or above")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to.name} already exists and is not empty", hint="name a new folder, or empty this one")
    to.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{to.name}.", suffix=".part", dir=to.parent))
    try:
        planted = spec.twin(part, generated)
        part.chmod(0o755)  # mkdtemp's 0700 would hide the twin from other users
        part.replace(to)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return planted

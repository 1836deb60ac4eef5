"""Offline twins: any dataset's archive, generated in exactly its layout, at once or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from medflow import datasets
from medflow.config.sections import Declaration
from medflow.datasets import Planted
from medflow.errors import ConfigError
from medflow.records import DatasetCard, Generated

FEWEST_IMAGES = 24


def write_twin(
    name: str, to: Path, generated: Generated, declared: Declaration | None = None, *, metadata: Path | None = None
) -> Planted:
    """Write the twin of dataset ``name`` to ``to``, a folder that is empty or not there yet.

    ``declared``: how its YAML states a dataset that has no module. ``metadata``: a new file for the table that goes
    with the dataset and is no part of its archive.
    It is written beside ``to`` and renamed when complete. Returns the faults that were planted.
    Raises ConfigError for an unknown dataset, fewer than 24 images, a negative seed, where ``to`` holds anything,
    and where ``metadata`` exists or the dataset has none.
    """
    spec = datasets.get(name, declared)
    _refuse_metadata(spec.card, metadata)
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
        if spec.card.metadata:
            _take_out(part / spec.card.metadata, metadata)
        part.chmod(0o755)  # mkdtemp's 0700 would hide the twin from other users
        part.replace(to)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return planted


def _refuse_metadata(card: DatasetCard, metadata: Path | None) -> None:
    if metadata is None:
        return
    if not card.metadata:
        raise ConfigError(f"{card.name} has no metadata file beside its archive", hint="leave `--metadata` out")
    if metadata.exists():
        raise ConfigError(f"{metadata.name} already exists", hint="name a new file for the metadata")


def _take_out(written: Path, metadata: Path | None) -> None:
    """Move the table out of the archive's layout, or remove it where nobody asked for it."""
    if metadata is None:
        written.unlink()
        return
    metadata.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(written, metadata)

"""A declaration that was worked out, and what else was noticed on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from medflow.config.sections import FolderDataset, TableDataset

MASK = {"kind": "mask", "name": "mask", "labels": ("mask",)}


@dataclass(frozen=True)
class Guess:
    declared: FolderDataset | TableDataset
    pictures: tuple[PurePosixPath, ...]
    """Images that are no masks, to look at some of them."""
    notes: tuple[str, ...] = ()

"""What one file in this directory must say about its dataset.

A dataset module defines ``SPEC``. The directory is the registry: ``medflow.datasets.get(name)``.
Modules here never import one another; what they share lies in modules that start with an underscore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medflow.records import DatasetCard, Finding, Generated


@dataclass(frozen=True)
class Row:
    """One image as the dataset's own files describe it. Nothing is opened to make one."""

    image_id: str
    path: str
    """Relative to the data root, POSIX."""
    labels: Mapping[str, int | None]
    """``<head>.<label>`` → 1, 0 or None (unknown), for every label column of the card."""
    group: str | None = None
    """Patient or lesion. None: a group of its own where the card expects none, else unknown, and `split` stops."""
    mask_path: str | None = None
    text: str | None = None
    official_split: str | None = None
    source: str | None = None
    age: float | None = None
    sex: str | None = None
    view: str | None = None
    site: str | None = None
    boxes: str | None = None
    """JSON list of {label, x, y, width, height}, in pixels of the original."""


@dataclass(frozen=True)
class Listing:
    """Every image of a dataset, sorted by ``image_id``, and what was odd about its tables."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Planted:
    """What a twin's faults are, by kind → relative paths, so that tests can count them."""

    faults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetSpec:
    card: DatasetCard
    listing: Callable[[Path], Listing]
    """Reads the layout below a data root. Raises DataError where the root is not this dataset."""
    twin: Callable[[Path, Generated], Planted]
    """Writes an offline twin below an empty folder. Deterministic: same request, same bytes.

    It writes the card's ``metadata`` file as well, which ``twins.write_twin`` then takes out of the archive's layout.
    """
    listing_with: Callable[[Path, Path], Listing] | None = None
    """As ``listing``, joined with the file of ``--metadata``; there is one where the card names ``metadata``."""
    beside: tuple[Path, ...] = ()
    """Files outside of the data root that the listing reads as well; a change of theirs is a change of the source."""

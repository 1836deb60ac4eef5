"""Look at somebody's folder, and say how to declare it as a dataset: what `medflow new` does.

What was found is written as a declaration (`medflow.config.sections.declared`) and then listed by the very code that
a run will use, so that the counts told here are those of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medflow import datasets
from medflow.config.sections import FolderDataset, TableDataset
from medflow.datasets import Listing
from medflow.datasets._declared import NEAR_DUPLICATES
from medflow.errors import DataError
from medflow.records import DatasetCard
from medflow.survey.folders import declare_folder
from medflow.survey.samples import with_channels
from medflow.survey.tables import declare_table

FEWEST_IMAGES = 12
"""A label with fewer images is told: each of three parts needs some, and each a few to measure on."""
TOLD_APART = (
    "patients cannot be told apart: only near-duplicate images are kept together, so that one patient can be in "
    "training and in test, and the figures come out too good"
)


@dataclass(frozen=True)
class Survey:
    declared: FolderDataset | TableDataset
    card: DatasetCard
    listing: Listing
    notes: tuple[str, ...]
    """What a reader must know, the gravest first."""

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Head → label → images with it."""
        return {
            head.name: {
                label: sum(row.labels[f"{head.name}.{label}"] == 1 for row in self.listing.rows)
                for label in head.labels
            }
            for head in self.card.heads
            if head.kind != "mask"
        }

    def masks(self) -> int:
        """Images with a mask."""
        return sum(row.mask_path is not None for row in self.listing.rows)

    def groups(self) -> int | None:
        """Patients or lesions; None where nothing tells them apart."""
        told = {row.group for row in self.listing.rows} - {None}
        return len(told) if told else None


def survey(name: str, images: Path, table: Path | None) -> Survey:
    """What the folder ``images`` holds, read with ``table`` where one is given.

    Opens a few images to see whether they have colours; all else is told by names and by the table.
    Raises DataError where there is no image, or nothing that tells labels or masks.
    """
    if not images.is_dir():
        raise DataError(f"{images} is no folder", hint="name the folder that holds the images with --images")
    guess = declare_folder(images) if table is None else declare_table(images, table)
    guess = with_channels(guess, images)
    declared = guess.declared.model_copy(update={"title": name})
    listing = datasets.get(name, declared).listing(images)
    if not listing.rows:
        raise DataError(f"no image of {images} could be matched", hint="check that --csv and --images belong together")
    if declared.grouped_by == NEAR_DUPLICATES and any(row.group for row in listing.rows):  # DICOM headers tell
        declared = declared.model_copy(update={"grouped_by": "patient"})
    found = Survey(declared, datasets.get(name, declared).card, listing, guess.notes)
    return replace(found, notes=(*_grave(found), *guess.notes))


def _grave(found: Survey) -> list[str]:
    notes = []
    if found.declared.grouped_by == NEAR_DUPLICATES:
        notes.append(TOLD_APART)
    for counts in found.label_counts().values():
        few = [f"{label} ({images})" for label, images in counts.items() if images < FEWEST_IMAGES]
        if few:
            notes.append(
                f"too few images to learn from or to measure on: {', '.join(few)}; "
                "find more, or move such a label from `labels` to `ignore`"
            )
    return notes

"""Which folder names are labels, parts of a split or patients: a declaration of kind `folder`.

Levels are read from the top. One name for all is fixed; two or more of train, val and test are the split; many
folders with a few images each and names alike but for their digits are patients; the first other level is the label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from medflow.config.sections import FolderDataset
from medflow.datasets._declared import NEAR_DUPLICATES, Pattern, split_of
from medflow.errors import DataError
from medflow.survey.files import Files, files_of, mask_place
from medflow.survey.guess import MASK, Guess

NUMBERED = re.compile(r"(images?|imgs?|part|batch|folder|chunk|archive)([ _-]?)\d+", re.IGNORECASE)
"""Folders that exist only because one would be too full."""
SHARE = 0.9
"""A level counts where at least this share of the images lies that deep."""
FEWEST_PATIENTS = 30
MOST_IMAGES_EACH = 20
MOST_LABELS = 200


def declare_folder(root: Path) -> Guess:
    """Raises DataError where the folder tells neither labels nor masks."""
    files = files_of(root)
    images = folders_of(files.pictures)
    labels = _labels(files, images)
    masks = mask_place(files, images)
    if not labels and masks is None:
        raise DataError(
            f"{root} has {len(files.pictures)} images, and neither class folders nor masks of their names",
            hint="put images into one folder a class, add a folder masks/ beside images/, or pass a table with --csv",
        )
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"{root} has {len(labels)} folders that could be labels",
            hint="name a folder above class folders, or pass --csv",
        )
    heads = ([{"kind": "exclusive", "name": "label", "labels": labels}] if labels else []) + ([MASK] if masks else [])
    declared = FolderDataset.model_validate(
        {
            "heads": heads,
            "images": images,
            "masks": masks.folder if masks else None,
            "mask_suffix": masks.suffix if masks else "",
            "grouped_by": "patient" if "{group}" in images else NEAR_DUPLICATES,
        }
    )
    return Guess(declared, files.pictures, tuple(_notes(files, labels, declared)))


def folders_of(pictures: Sequence[PurePosixPath]) -> str:
    """The folder pattern of the pictures, such as ``{split}/{label}/images``."""
    parts: list[str] = []
    for level in range(max(len(path.parts) for path in pictures)):
        names = Counter(path.parts[level] for path in pictures if len(path.parts) > level + 1)
        if names.total() < SHARE * len(pictures):
            break
        part = _level(names, taken=parts)
        if part is None:
            break
        parts.append(part)
    return "/".join(parts)


def _level(names: Counter[str], taken: Sequence[str]) -> str | None:
    """What one level of folders says; None where it says nothing that is still asked."""
    if len(names) == 1:
        [only] = names
        # A brace or a star would be read as a pattern: the folder is then any folder.
        return only if not set(only) & set("{}*\\") else "*"
    numbered = [NUMBERED.fullmatch(name) for name in names]
    if all(numbered):
        starts = {f"{match[1]}{match[2]}" for match in numbered if match is not None}
        return f"{starts.pop()}*" if len(starts) == 1 else "*"
    if "{split}" not in taken and sum(split_of(name) is not None for name in names) >= 2:
        return "{split}"
    if "{group}" not in taken and _are_patients(names):
        return "{group}"
    return "{label}" if "{label}" not in taken else None


def _are_patients(names: Counter[str]) -> bool:
    shapes = {re.sub(r"\d+", "0", name) for name in names}
    numbered = all(any(letter.isdigit() for letter in name) for name in names)
    return (
        len(names) > FEWEST_PATIENTS and names.total() < MOST_IMAGES_EACH * len(names) and numbered and len(shapes) <= 3
    )


def _labels(files: Files, images: str) -> tuple[str, ...]:
    pattern = Pattern(images)
    places = (pattern.place(path) for path in files.pictures)
    return tuple(sorted({place.says["label"] for place in places if place is not None and "label" in place.says}))


def _notes(files: Files, labels: Sequence[str], declared: FolderDataset) -> list[str]:
    notes = []
    alike = [name for name, count in Counter(label.casefold() for label in labels).items() if count > 1]
    if alike:
        notes.append(f"labels that differ in upper and lower case only: {', '.join(alike)}")
    if files.masks and declared.masks is None:
        notes.append(f"{len(files.masks)} images lie where masks would, and none is called like an image: not used")
    return notes

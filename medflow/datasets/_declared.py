"""What the two generic datasets share: folder patterns, masks found by name, groups told by a path.

A folder pattern such as ``{split}/{label}/images`` names the folders that hold files at any depth below:
``{...}`` is one whole folder name that says something, ``*`` any part of a name, all else is literal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from medflow.config.sections import Declared, DeclaredHead, FolderDataset, TableDataset
from medflow.datasets._layout import DICOM_SUFFIXES, files_below, is_image, told
from medflow.datasets._spec import Row
from medflow.errors import DataError
from medflow.records import DatasetCard, Finding, HeadSpec

if TYPE_CHECKING:
    from medflow.dicom.facts import DicomFacts

NEAR_DUPLICATES = "near-duplicates"
SPLITS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
"""How data sets call the parts of their own split, in lower case → role."""


def card(name: str, declared: Declared, heads: Sequence[DeclaredHead]) -> DatasetCard:
    return DatasetCard(
        name=name,
        title=declared.title or name,
        heads=tuple(HeadSpec(kind=head.kind, name=head.name, labels=head.labels) for head in heads),
        channels=declared.channels,
        grouped_by=declared.grouped_by,
        modality=declared.modality,
        licence=declared.licence,
        citation=declared.citation,
        limits=declared.limits,
    )


# -- folder patterns -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A file as a folder pattern sees it."""

    says: Mapping[str, str]
    """label, split and group, those that the pattern has."""
    rest: PurePosixPath
    """Below the pattern's folder."""

    def key(self, names: Iterable[str], suffix: str = "") -> tuple[str, ...]:
        """What an image and its mask have in common; ``suffix`` is taken off a mask's name."""
        stem = self.rest.stem.removesuffix(suffix)
        return (*(self.says[name] for name in sorted(names)), self.rest.with_name(stem).as_posix())


@dataclass(frozen=True)
class Pattern:
    folder: str

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(re.findall(r"\{(\w+)\}", self.folder))

    def place(self, path: PurePosixPath) -> Place | None:
        """None where the file is not below such a folder."""
        match = self._regex.fullmatch(path.as_posix())
        if match is None:
            return None
        says = match.groupdict()
        return Place(rest=PurePosixPath(says.pop("rest")), says=says)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts = [_part(part) for part in PurePosixPath(self.folder).parts]
        return re.compile("".join(f"{part}/" for part in parts) + "(?P<rest>.+)", re.DOTALL)


def _part(part: str) -> str:
    """One folder's name as a regular expression."""
    escaped = re.escape(part).replace(r"\*", "[^/]*")
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", escaped)


# -- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawers:
    """Every file below the source, sorted by what its path says it is."""

    images: Mapping[PurePosixPath, Place]
    masks: Mapping[tuple[str, ...], PurePosixPath]
    by: frozenset[str]
    """What the folders of masks say: an image's key is made of the same."""
    repeated: tuple[PurePosixPath, ...] = ()
    """Second masks of one name; the first in order counts."""
    stray: tuple[PurePosixPath, ...] = ()
    used: set[PurePosixPath] = field(default_factory=set)
    """Masks that an image asked for."""

    def mask_of(self, place: Place) -> PurePosixPath | None:
        if not self.by <= place.says.keys():
            return None
        mask = self.masks.get(place.key(self.by))
        if mask is not None:
            self.used.add(mask)
        return mask


def sort(root: Path, declared: FolderDataset | TableDataset) -> Drawers:
    """Walk ``root`` once. Raises DataError where it is no folder, or holds no image where images should be."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder", hint=f"expected {_expected(declared)}")
    pictures = Pattern(declared.images)
    outlines = Pattern(declared.masks) if declared.masks is not None else None
    images: dict[PurePosixPath, Place] = {}
    masks: dict[tuple[str, ...], PurePosixPath] = {}
    repeated, stray = [], []
    for path in files_below(root):
        mask = outlines.place(path) if outlines is not None and is_image(path) else None
        if outlines is not None and mask is not None and path.stem.endswith(declared.mask_suffix):
            key = mask.key(outlines.names, declared.mask_suffix)
            if masks.setdefault(key, path) != path:
                repeated.append(path)
        elif is_image(path) and (place := pictures.place(path)) is not None:
            images[path] = place
        else:
            stray.append(path)
    if not images:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{root.name or root} holds no image where `declare` expects them; it holds {found}",
            hint=f"expected {_expected(declared)}; `medflow new NAME --images DIR` looks at a folder anew",
        )
    by = outlines.names if outlines is not None else frozenset()
    return Drawers(images, masks, by, tuple(repeated), tuple(stray))


def _expected(declared: FolderDataset | TableDataset) -> str:
    return f"images below {declared.images or 'the source'} (declare.images)"


def mask_findings(drawers: Drawers) -> tuple[Finding, ...]:
    alone = set(drawers.masks.values()) - drawers.used
    return (
        *told("mask_without_image", "masks without an image of the same name", alone),
        *told("mask_repeated", "second masks of one name, not used", drawers.repeated, "warning"),
    )


def with_headers(root: Path, rows: Iterable[Row]) -> tuple[tuple[Row, ...], tuple[Finding, ...]]:
    """Rows by their ids, completed by what the headers of DICOM files say where folders and tables say nothing."""
    ordered = tuple(sorted(rows, key=lambda row: row.image_id))
    paths = [PurePosixPath(row.path) for row in ordered]
    if not any(path.suffix.lower() in DICOM_SUFFIXES for path in paths):
        return ordered, ()
    from medflow.datasets._dicom import described  # it imports pydicom, which most datasets do not need
    from medflow.datasets._header_groups import groups_of

    headers = described(root, paths)
    groups, findings = groups_of(ordered, headers.facts)
    whole = (_complete(row, group, headers.facts.get(row.path)) for row, group in zip(ordered, groups, strict=True))
    return tuple(whole), (*headers.findings, *findings)


def _complete(row: Row, group: str | None, header: DicomFacts | None) -> Row:
    if header is None:
        return replace(row, group=group)
    return replace(
        row,
        group=group,
        age=header.age if row.age is None else row.age,
        sex=row.sex or header.sex,
        view=row.view or header.view,
    )


# -- what a path or a cell says ------------------------------------------------------------------


def split_of(word: str | None) -> str | None:
    return SPLITS.get((word or "").strip().lower())


def group_of(pattern: str | None, path: PurePosixPath) -> str | None:
    """What ``group_pattern`` finds in a path: its first group, or all of it where it has none."""
    match = re.search(pattern, path.as_posix()) if pattern is not None else None
    if match is None:
        return None
    return (match[1] if match.re.groups else match[0]) or None

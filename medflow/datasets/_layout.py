"""Reading a folder layout without opening a file: one walk, then every file is sorted into a drawer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from medflow.errors import DataError
from medflow.records import Finding

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"}) | DICOM_SUFFIXES
_LITTER_FOLDERS = frozenset({"__MACOSX", ".ipynb_checkpoints", "@eaDir"})
_EXAMPLES = 5


def files_below(folder: Path) -> list[PurePosixPath]:
    """Every file below ``folder``, relative to it and sorted. Links to folders are followed, but never in a circle.

    A link to nothing counts as a file: an image that cannot be read is for ``validate`` to tell.
    """
    return sorted(_walk(os.fspath(folder), PurePosixPath(), frozenset()))


def _walk(folder: str, inside: PurePosixPath, above: frozenset[str]) -> Iterator[PurePosixPath]:
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, inside / entry.name, above | {here})
            else:
                yield inside / entry.name


def is_image(path: PurePosixPath) -> bool:
    """By its name alone: a text called .png is an image here, and an unreadable one for ``validate``."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_litter(path)


def is_litter(path: PurePosixPath) -> bool:
    """Left behind by a file manager or an archiver: ``.DS_Store``, ``__MACOSX``, ``._name``, ``Thumbs.db``."""
    hidden = path.name.startswith(".") or path.name in {"Thumbs.db", "desktop.ini"}
    return hidden or not _LITTER_FOLDERS.isdisjoint(path.parts)


def locate(root: Path, folder: str, marks: Sequence[str], expected: str) -> Path:
    """The dataset's own folder: ``root``, ``root/folder`` or, for a nested copy alone, one deeper.

    It is the first that holds one of ``marks`` (relative folders or files).
    Raises DataError, with the ``expected`` layout as hint, where none does.
    """
    for base in (root, root / folder, root / folder / folder):
        if any((base / mark).exists() for mark in marks):
            return base
    found = sorted(entry.name for entry in root.iterdir())[:_EXAMPLES] if root.is_dir() else []
    seen = f"it holds {', '.join(found)}" if found else "it is empty or no folder"
    raise DataError(f"{root.name or root} is not laid out as expected: {seen}", hint=f"expected {expected}")


def told(
    check: str,
    message: str,
    paths: Iterable[PurePosixPath | str],
    severity: Literal["error", "warning", "info"] = "info",
) -> tuple[Finding, ...]:
    """One finding over ``paths``, with a bounded number of examples; none where there are no paths."""
    names = sorted(str(path) for path in paths)
    if not names:
        return ()
    examples = tuple(names[:_EXAMPLES])
    return (Finding(check=check, severity=severity, message=message, count=len(names), examples=examples),)

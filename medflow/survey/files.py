"""Which files are images and which are masks, by the names of folders and files alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medflow.datasets._declared import Pattern
from medflow.datasets._layout import IMAGE_SUFFIXES, files_below, is_image, is_litter
from medflow.errors import DataError

MASK_FOLDER = re.compile(
    r"(?:.*[ _-])?(?:masks?|segmentations?|segs?|annotations?|ground[ _-]?truths?|gt|contours?|labels)(?:[ _-].*)?",
    re.IGNORECASE,
)
MASK_SUFFIX = re.compile(r"[ _-](?:mask|seg|segmentation|lesion|roi|gt|label|annotation)s?$", re.IGNORECASE)


@dataclass(frozen=True)
class Files:
    pictures: tuple[PurePosixPath, ...]
    masks: tuple[PurePosixPath, ...]
    suffix: str
    """What the masks' names add to their images'; most of them do, where any does."""


@dataclass(frozen=True)
class MaskPlace:
    folder: str
    suffix: str
    found: int
    """Pictures that have a mask there."""


def files_of(root: Path) -> Files:
    """Every image below ``root``, masks apart. Raises DataError where there is none."""
    every = files_below(root)
    images = [path for path in every if is_image(path)]
    if not images:
        raise DataError(f"{root} holds no image: {_held(every)}", hint=f"expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    in_folders = [path for path in images if mask_folder(path) is not None]
    masks = in_folders or _beside(images)
    apart = set(masks)
    pictures = tuple(path for path in images if path not in apart)
    if not pictures:
        raise DataError(
            f"every image of {root} lies in a folder of masks, such as {masks[0].parent}",
            hint="name the folder above, which holds the images as well",
        )
    return Files(pictures, tuple(masks), _suffix(masks))


def mask_folder(path: PurePosixPath) -> str | None:
    """The folder's name by which a file is a mask."""
    return next((part for part in path.parts[:-1] if MASK_FOLDER.fullmatch(part)), None)


def mask_place(files: Files, images: str) -> MaskPlace | None:
    """The folder pattern under which most pictures find their mask, given that of the images; None where none does."""
    words = Counter(mask_folder(path) for path in files.masks)
    folders = [images] if None in words else [folder for word in words for folder in _variants(images, str(word))]
    suffixes = dict.fromkeys(("", files.suffix))
    tried = [
        MaskPlace(folder, suffix, _matches(files, images, folder, suffix))
        for folder in folders
        for suffix in suffixes
        if suffix or folder != images
    ]
    best = max(tried, key=lambda place: place.found, default=None)
    return best if best is not None and best.found else None


def _variants(images: str, word: str) -> list[str]:
    """``images`` with ``word`` in place of one of its fixed folders, or between any two."""
    parts = PurePosixPath(images).parts
    fixed = [place for place, part in enumerate(parts) if "{" not in part]
    swapped = [(*parts[:place], word, *parts[place + 1 :]) for place in reversed(fixed)]
    added = [(*parts[:place], word, *parts[place:]) for place in range(len(parts) + 1)]
    return ["/".join(variant) for variant in (*swapped, *added)]


def _matches(files: Files, images: str, folder: str, suffix: str) -> int:
    pictures, outlines = Pattern(images), Pattern(folder)
    places = (outlines.place(path) for path in files.masks if path.stem.endswith(suffix))
    keys = {place.key(outlines.names, suffix) for place in places if place is not None}
    seen = (pictures.place(path) for path in files.pictures)
    return sum(place is not None and place.key(outlines.names) in keys for place in seen)


def _beside(images: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Files that are called like another one of their folder, and ``_mask`` or the like behind it."""
    known = {(path.parent, path.stem) for path in images}
    bare = ((path, MASK_SUFFIX.sub("", path.stem)) for path in images)
    return [path for path, stem in bare if stem != path.stem and (path.parent, stem) in known]


def _suffix(masks: Sequence[PurePosixPath]) -> str:
    found = Counter(match[0] for path in masks if (match := MASK_SUFFIX.search(path.stem)) is not None)
    return found.most_common(1)[0][0] if found else ""


def _held(every: Sequence[PurePosixPath]) -> str:
    kinds = Counter("".join(path.suffixes[-2:]).lower() or path.name for path in every if not is_litter(path))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no file at all"

"""Plants faults among the files of a generated dataset, and says which, so that a test can count what is found.

A fault spoils an image in place, moves it, or adds one that should not be there; no image gets two.
Where a new file belongs, and what it is called, only the dataset knows: it hands over its ``Naming``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.random import Generator

from medflow.datasets._spec import Planted
from medflow.datasets._synthesis import save

UNKNOWN_LABEL = "Unclear"


@dataclass(frozen=True)
class Written:
    """One image that a twin wrote. ``path`` and ``mask_path`` are relative to the twin's root, POSIX."""

    shot: int
    """Index of the shot that it shows."""
    path: str
    label: str
    mask_path: str | None = None
    patient: str | None = None
    split: str | None = None


class Naming(Protocol):
    """Where a further image of ``label`` in ``split`` goes; it shows ``patient``, or somebody new for None."""

    def __call__(self, original: Written, label: str, split: str | None, patient: str | None) -> Written: ...


@dataclass(frozen=True)
class Ground:
    """Where faults can be planted, and with what."""

    root: Path
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    """Empty where the layout has none."""
    naming: Naming
    rng: Generator

    def other_label(self, image: Written) -> str:
        return str(self.rng.choice([label for label in self.labels if label != image.label]))

    def other_split(self, image: Written) -> str | None:
        others = [split for split in self.splits if split != image.split]
        return str(self.rng.choice(others)) if others else None


def plant(ground: Ground, written: Sequence[Written]) -> tuple[Planted, tuple[Written, ...]]:
    """Plant every kind of fault that this layout can hold, each on about one image in fifty.

    Returns kind → paths of the images at fault, and all images as they now lie, for the dataset's tables.
    """
    each = max(1, len(written) // 50)
    clean = [written[place] for place in ground.rng.permutation(len(written))]
    spoiled: list[Written] = []
    faults: dict[str, tuple[str, ...]] = {}
    for kind, (possible, fault) in KINDS.items():
        victims = [image for image in clean if possible(ground, image)][:each]
        clean = [image for image in clean if image not in victims]
        left = [fault(ground, victim) for victim in victims]
        spoiled.extend(image for images in left for image in images)
        if left:
            faults[kind] = tuple(sorted(images[-1].path for images in left))
    return Planted(faults), tuple(sorted((*clean, *spoiled), key=lambda image: image.path))


# -- the faults: each takes one image, and returns what lies there now, the image at fault last ---


def _truncate(ground: Ground, image: Written) -> tuple[Written, ...]:
    path = ground.root / image.path
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return (image,)


def _write_text(ground: Ground, image: Written) -> tuple[Written, ...]:
    (ground.root / image.path).write_text("<html><body>404 Not Found</body></html>\n")
    return (image,)


def _duplicate(ground: Ground, image: Written) -> tuple[Written, ...]:
    return image, _copy(ground, image, ground.naming(image, image.label, image.split, None))


def _duplicate_in_other_split(ground: Ground, image: Written) -> tuple[Written, ...]:
    return image, _copy(ground, image, ground.naming(image, image.label, ground.other_split(image), None))


def _conflict(ground: Ground, image: Written) -> tuple[Written, ...]:
    return image, _copy(ground, image, ground.naming(image, ground.other_label(image), image.split, None))


def _near_duplicate(ground: Ground, image: Written) -> tuple[Written, ...]:
    """The same picture a little brighter, encoded again; in another split where there are splits."""
    copy = _copy(ground, image, ground.naming(image, image.label, ground.other_split(image), None))
    _repaint(ground.root / copy.path, lambda gray: np.clip(gray.astype(np.int16) + 3, 0, 255).astype(np.uint8))
    return image, copy


def _leak_patient(ground: Ground, image: Written) -> tuple[Written, ...]:
    """A second look at a patient, turned and shifted so that no hash tells, in another split."""
    copy = _copy(ground, image, ground.naming(image, image.label, ground.other_split(image), image.patient))
    _repaint(ground.root / copy.path, _turned)
    return image, copy


def _unknown_label(ground: Ground, image: Written) -> tuple[Written, ...]:
    moved = _copy(ground, image, ground.naming(image, UNKNOWN_LABEL, image.split, image.patient))
    for path in (image.path, image.mask_path):
        if path is not None:
            (ground.root / path).unlink()
    return (moved,)


def _remove_mask(ground: Ground, image: Written) -> tuple[Written, ...]:
    _mask_of(ground, image).unlink()
    return (replace(image, mask_path=None),)


def _mismatch_mask(ground: Ground, image: Written) -> tuple[Written, ...]:
    _repaint(_mask_of(ground, image), lambda mask: mask[: mask.shape[0] // 2])
    return (image,)


def _empty_mask(ground: Ground, image: Written) -> tuple[Written, ...]:
    _repaint(_mask_of(ground, image), np.zeros_like)
    return (image,)


def _mask_of(ground: Ground, image: Written) -> Path:
    assert image.mask_path is not None, image.path
    return ground.root / image.mask_path


def _copy(ground: Ground, image: Written, target: Written) -> Written:
    """Copy the image, and its mask where both places have one. Returns the target as it lies."""
    _copy_file(ground.root / image.path, ground.root / target.path)
    if image.mask_path is None or target.mask_path is None:
        return replace(target, mask_path=None)
    _copy_file(ground.root / image.mask_path, ground.root / target.mask_path)
    return target


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _repaint(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    # OpenCV reads BGR where `save` takes RGB.
    save(path, change(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))


def _turned(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 7.0, 1.08)
    turn[:, 2] += (0.04 * width, -0.03 * height)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


def _always(ground: Ground, image: Written) -> bool:
    return True


def _has_splits(ground: Ground, image: Written) -> bool:
    return bool(ground.splits)


def _is_somebody(ground: Ground, image: Written) -> bool:
    return bool(ground.splits) and image.patient is not None


def _has_mask(ground: Ground, image: Written) -> bool:
    return image.mask_path is not None


Possible = Callable[[Ground, Written], bool]
Fault = Callable[[Ground, Written], tuple[Written, ...]]

KINDS: dict[str, tuple[Possible, Fault]] = {
    "truncated": (_always, _truncate),
    "not_an_image": (_always, _write_text),
    "duplicate": (_always, _duplicate),
    "duplicate_in_other_split": (_has_splits, _duplicate_in_other_split),
    "label_conflict": (_always, _conflict),
    "near_duplicate": (_always, _near_duplicate),
    "patient_in_two_splits": (_is_somebody, _leak_patient),
    "unknown_label": (_always, _unknown_label),
    "mask_missing": (_has_mask, _remove_mask),
    "mask_mismatched": (_has_mask, _mismatch_mask),
    "mask_empty": (_has_mask, _empty_mask),
}

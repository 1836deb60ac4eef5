"""The offline twin of a dermatoscopic archive: lesions with a few photographs each, masks, tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from medflow.datasets._faults import UNKNOWN_LABEL, Ground, Naming, Written, plant
from medflow.datasets._lesions import Lesion, photograph
from medflow.datasets._patients import Stream, on_all_cores, stream
from medflow.datasets._spec import Planted
from medflow.datasets._synthesis import save
from medflow.records import Generated

TRUTH, METADATA, IMAGES, MASKS = "GroundTruth.csv", "HAM10000_metadata.csv", "images", "masks"
MASK_SUFFIX = "_segmentation"
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FIRST_IMAGE = 24306
SIZE = (450, 600)
"""Height and width."""
DRAWN = (225, 300)
"""A photograph is drawn at half its size: as much detail as a lesion of formulas has, in a sixth of the time."""
PALETTE_EVERY = 8
"""Share of masks with an inverted palette; one in 25 in the archive, too few for a small twin."""

#: Chosen, not the archive's, which is two thirds NV: enough of the rarest class for a small twin.
SHARES = {"NV": 0.34, "MEL": 0.14, "BKL": 0.13, "BCC": 0.11, "AKIEC": 0.1, "VASC": 0.09, "DF": 0.09}
#: Class → ranges of how ragged, dark and mottled its lesions are, 0 to 1. They overlap, as they do in life.
LOOKS = {
    "NV": ((0.05, 0.45), (0.5, 0.8), (0.0, 0.3)),
    "MEL": ((0.55, 1.0), (0.7, 1.0), (0.35, 0.9)),
    "BKL": ((0.3, 0.7), (0.35, 0.65), (0.5, 0.95)),
    "BCC": ((0.2, 0.6), (0.25, 0.45), (0.1, 0.5)),
    "AKIEC": ((0.6, 1.0), (0.25, 0.45), (0.5, 0.95)),
    "VASC": ((0.0, 0.2), (0.85, 1.0), (0.0, 0.1)),
    "DF": ((0.0, 0.3), (0.35, 0.55), (0.0, 0.25)),
}
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "unknown")
METHODS = ("histo", "follow_up", "consensus", "confocal")
ABOUT = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")


@dataclass(frozen=True)
class _Case:
    """One lesion, and the person who has it."""

    number: int
    label: str
    lesion: Lesion
    cells: tuple[str, str, str, str]
    """dx_type, age, sex, localization, as the table writes them."""


def twin(root: Path, request: Generated) -> Planted:
    """Writes the archive's layout and the metadata table below ``root``, an empty folder. Same request, same bytes."""
    for folder in (IMAGES, MASKS):
        (root / folder).mkdir(parents=True)
    cases = _cases(request.seed, request.images)
    named = [
        _named(index, case.label, FIRST_IMAGE + index, _lesion_id(case.number)) for index, case in enumerate(cases)
    ]
    written = tuple(on_all_cores(lambda image: _write(root, request.seed, cases[image.shot], image), named))
    planted = Planted()
    if request.planted_faults:
        naming = _naming(FIRST_IMAGE + len(cases), cases[-1].number + 1)
        planted, written = plant(Ground(root, CLASSES, (), naming, stream(request.seed, Stream.FAULTS)), written)
    _write_truth(root / TRUTH, written)
    _write_metadata(root / METADATA, written, cases)
    return planted


def _cases(seed: int, images: int) -> list[_Case]:
    """The case of each image; a lesion has one to three, and labels go to whichever is furthest behind its share."""
    drawn: list[_Case] = []
    counts = dict.fromkeys(SHARES, 0)
    for number in count(1):
        rng = stream(seed, Stream.PATIENT, number)
        label = min(SHARES, key=lambda name: (counts[name] + 1) / SHARES[name])
        take = min(int(rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1))), images - len(drawn))
        drawn += [_case(number, label, rng)] * take
        counts[label] += take
        if len(drawn) == images:
            break
    return drawn


def _case(number: int, label: str, rng: Generator) -> _Case:
    ragged, dark, mottled = (float(rng.uniform(*limits)) for limits in LOOKS[label])
    lesion = Lesion.draw(rng, ragged=ragged, dark=dark, mottled=mottled)
    age = f"{5.0 * round(float(np.clip(rng.normal(52.0, 16.0), 0, 85)) / 5.0):.1f}"
    sex = "female" if rng.random() < 0.45 else "male"
    if rng.random() < 0.05:
        age, sex = "", "unknown"
    return _Case(number, label, lesion, (str(rng.choice(METHODS)), age, sex, str(rng.choice(SITES))))


def _lesion_id(number: int) -> str:
    return f"HAM_{number:07d}"


def _named(shot: int, label: str, number: int, lesion: str) -> Written:
    name = f"ISIC_{number:07d}"
    return Written(shot, f"{IMAGES}/{name}.jpg", label, f"{MASKS}/{name}{MASK_SUFFIX}.png", lesion)


def _naming(first_image: int, first_lesion: int) -> Naming:
    images, lesions = count(first_image), count(first_lesion)

    def name(original: Written, label: str, split: str | None, patient: str | None) -> Written:
        return _named(original.shot, label, next(images), patient or _lesion_id(next(lesions)))

    return name


def _write(root: Path, seed: int, case: _Case, image: Written) -> Written:
    seen = photograph(case.lesion, DRAWN, stream(seed, Stream.IMAGE, image.shot))
    size = SIZE[::-1]
    save(root / image.path, cv2.resize(seen.image, size, interpolation=cv2.INTER_LINEAR))
    outline = cv2.resize(seen.outline, size, interpolation=cv2.INTER_NEAREST)
    path = root / str(image.mask_path)
    if image.shot % PALETTE_EVERY:
        save(path, outline * np.uint8(255))
    else:
        _save_inverted(path, outline)
    return image


def _save_inverted(path: Path, outline: np.ndarray) -> None:
    """A palette image whose index 0 is the lesion, and white."""
    indices = Image.fromarray(1 - outline).convert("L")
    indices.putpalette([255, 255, 255, 0, 0, 0])
    indices.save(path)


def _write_truth(table: Path, written: Iterable[Written]) -> None:
    ordered = sorted(written, key=lambda image: image.path)
    rows = [(_id(image), *(f"{float(image.label == label):.1f}" for label in CLASSES)) for image in ordered]
    _write_rows(table, ("image", *CLASSES), rows)


def _write_metadata(table: Path, written: Sequence[Written], cases: Sequence[_Case]) -> None:
    """By lesion, as the original; an image at fault keeps the person of the one that it was made from."""
    ordered = sorted(written, key=lambda image: (image.patient or "", image.path))
    rows = [(image.patient or "", _id(image), _dx(image), *cases[image.shot].cells) for image in ordered]
    _write_rows(table, ABOUT, rows)


def _id(image: Written) -> str:
    return PurePosixPath(image.path).stem


def _dx(image: Written) -> str:
    return "" if image.label == UNKNOWN_LABEL else image.label.lower()


def _write_rows(table: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with table.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)

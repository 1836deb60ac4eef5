"""``lung_disease``: Lungs Disease Dataset, chest radiographs of five classes put together from several collections.

Layout, as the archive extracts::

    Lung Disease Dataset/{train,val,test}/<class>/_21_3861426.jpeg
    Lung Disease Dataset/{train,val,test}/<class>/test_0_9774.jpeg

Names end in .jpeg or .jpg, and may hold several dots, spaces and brackets (``others (64).jpg``); they say nothing of
a patient. Gray and RGB files of any size lie side by side.

Many files are augmented copies of others, made before the archive was divided, so that its own test folder is no
fair judge: by default all images are split anew, near-duplicates together; ``split.official=true`` takes its folders.
A copy that was turned or mirrored is beyond a perceptual hash: what is left of this leak, no code can see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path, PurePosixPath

import cv2
from numpy.random import Generator

from medflow.datasets._faults import Ground, Naming, Written, plant
from medflow.datasets._layout import files_below, is_image, locate, told
from medflow.datasets._patients import (
    Shot,
    Stream,
    consolidation,
    exposed,
    nodule,
    on_all_cores,
    shots,
    stream,
    strength,
)
from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.datasets._synthesis import Opacity, Pathology, save
from medflow.records import DatasetCard, Generated, HeadSpec

FOLDER = "Lung Disease Dataset"
SPLITS = ("train", "val", "test")
CLASSES = ("Bacterial Pneumonia", "Corona Virus Disease", "Normal", "Tuberculosis", "Viral Pneumonia")
EXPECTED = (
    f"{FOLDER}/{{train,val,test}}/<class>/*.jpeg with classes {', '.join(CLASSES)}, or the folder {FOLDER} itself"
)

DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=CLASSES)

CARD = DatasetCard(
    name="lung_disease",
    title="Lungs Disease Dataset",
    heads=(DIAGNOSIS,),
    channels=1,
    grouped_by="near-duplicates",
    kaggle="khaleddev/lungs-disease-dataset-broken",
    modality="chest radiograph",
    licence="not stated; put together from several collections, each with its own terms",
    citation="Kaggle: khaleddev/lungs-disease-dataset-broken, after omkarmanohardalvi/lungs-disease-dataset-4-types",
    limits=(
        "Patients are unknown and many files are augmented copies of others, of which only near-duplicates can be kept "
        "together; classes come from different collections, so a model can tell them by their source."
    ),
)


# -- reading -------------------------------------------------------------------------------------


def listing(root: Path) -> Listing:
    """Images below ``root``, with official split. Raises DataError where it holds no split folder."""
    base = locate(root, FOLDER, [f"{split}/{label}" for split in SPLITS for label in CLASSES], EXPECTED)
    below = PurePosixPath(base.relative_to(root).as_posix())
    images, stray = _sort(files_below(base))
    unknown = [path for path in images if path.parts[1] not in CLASSES]
    findings = (
        *told("unknown_label", "images in a folder that is no class of this dataset", unknown),
        *told("stray_file", "files that are no part of the dataset", stray),
    )
    rows = sorted((_row(path, below) for path in images), key=lambda row: row.image_id)
    return Listing(rows=tuple(rows), findings=findings)


def _sort(files: Iterable[PurePosixPath]) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Images and strays."""
    images: list[PurePosixPath] = []
    stray: list[PurePosixPath] = []
    for path in files:
        is_one = len(path.parts) == 3 and path.parts[0] in SPLITS and is_image(path)
        (images if is_one else stray).append(path)
    return images, stray


def _row(path: PurePosixPath, below: PurePosixPath) -> Row:
    split, label, _ = path.parts
    return Row(
        image_id=path.as_posix(),
        path=(below / path).as_posix(),
        labels={f"{DIAGNOSIS.name}.{one}": int(one == label) for one in CLASSES},
        official_split=split,
    )


# -- generating ----------------------------------------------------------------------------------

#: Chosen, not the archive's: enough of the smallest class for a small twin.
SHARES = {
    "Bacterial Pneumonia": 0.2,
    "Corona Virus Disease": 0.2,
    "Normal": 0.25,
    "Tuberculosis": 0.2,
    "Viral Pneumonia": 0.15,
}
SPLIT_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_SIZES = (200, 360)


def twin(root: Path, request: Generated) -> Planted:
    """Writes the archive's layout below ``root``, an empty folder. Same request, same bytes."""
    for split in SPLITS:
        for label in CLASSES:
            (root / FOLDER / split / label).mkdir(parents=True)
    taken = shots(request.seed, request.images, SHARES, _ill)
    named = _named(taken)
    written = tuple(on_all_cores(lambda image: _write(root, request.seed, taken[image.shot], image), named))
    if not request.planted_faults:
        return Planted()
    rng = stream(request.seed, Stream.FAULTS)
    planted, _ = plant(Ground(root, CLASSES, SPLITS, _naming(len(taken)), rng), written)
    return planted


def _ill(label: str, rng: Generator) -> Pathology:
    """Bacteria: dense patches. Corona: faint patches in both lungs. Tuberculosis: nodules high up. Virus: haze."""
    mimic = (consolidation(rng, 0.05, 0.2),) if rng.random() < 0.2 else ()
    if label == "Bacterial Pneumonia":
        patches = tuple(consolidation(rng, 0.4, 0.95) for _ in range(int(rng.integers(1, 3))))
        return Pathology(opacities=patches, haze=float(rng.uniform(0.0, 0.15)))
    if label == "Corona Virus Disease":
        patches = tuple(consolidation(rng, 0.25, 0.6) for _ in range(int(rng.integers(3, 6))))
        return Pathology(opacities=patches, haze=float(rng.uniform(0.05, 0.25)))
    if label == "Tuberculosis":
        return Pathology(opacities=tuple(_apical(rng) for _ in range(int(rng.integers(2, 6)))))
    if label == "Viral Pneumonia":
        return Pathology(opacities=mimic, haze=strength(rng, 0.25, 0.6))
    return Pathology(opacities=mimic, haze=float(rng.uniform(0.0, 0.15)))


def _apical(rng: Generator) -> Opacity:
    drawn = nodule(rng, 0.5, 1.0)
    return Opacity(drawn.side, drawn.across, 0.4 * drawn.down, drawn.radius, drawn.strength, drawn.ragged)


def _named(taken: Sequence[Shot]) -> list[Written]:
    """Every shot's place: one patient's images lie in one split, and no split lacks a class."""
    homes: dict[int, str] = {}
    filled = {(label, split): 0 for label in CLASSES for split in SPLITS}
    named = []
    for shot in taken:
        label = shot.patient.label
        if shot.patient.number not in homes:
            homes[shot.patient.number] = min(SPLITS, key=lambda split: _fullness(filled[label, split], split))
        split = homes[shot.patient.number]
        filled[label, split] += 1
        named.append(_place(shot.index, label, split, shot.index + 1))
    return named


def _fullness(images: int, split: str) -> tuple[bool, float]:
    return images > 0, (images + 1) / SPLIT_SHARES[split]


def _place(shot: int, label: str, split: str | None, number: int) -> Written:
    """A file with one of the ways in which the archive's files, and those it was made from, are called."""
    names = (
        f"_{number % 30}_{3861000 + number}.jpeg",
        f"test_0_{9000 + number}.jpeg",
        f"TB.{number}.jpg",
        f"others ({number}).jpg",
        f"1-s2.0-S0140673620303706-fx{number}_lrg.jpg",
    )
    return Written(shot, f"{FOLDER}/{split}/{label}/{names[number % len(names)]}", label, split=split)


def _naming(taken: int) -> Naming:
    numbers = count(taken + 1)

    def name(original: Written, label: str, split: str | None, patient: str | None) -> Written:
        return _place(original.shot, label, split, next(numbers))

    return name


def _write(root: Path, seed: int, shot: Shot, image: Written) -> Written:
    rng = stream(seed, Stream.LAYOUT, shot.index)
    height, width = (int(side) for side in rng.integers(*_SIZES, size=2))
    seen = exposed(seed, shot, (height, width)).image
    is_rgb = rng.random() < 0.3
    save(root / image.path, cv2.merge([seen] * 3) if is_rgb else seen)
    return image


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin)

"""``nih_chestxray14``: NIH ChestX-ray14, 112,120 radiographs of 30,805 patients, 14 findings that do not exclude
each other.

Layout, as the archive extracts::

    Data_Entry_2017.csv          one row an image: findings joined by |, patient, age, sex, view
    BBox_List_2017.csv           984 boxes, in pixels of the 1024 x 1024 image
    train_val_list.txt           86,524 names    } the official split, by patient;
    test_list.txt                25,596 names    } no newline at the end
    images_001/images/00000001_000.png ... images_012/images/...
    README_CHESTXRAY.pdf and three more

The table is the truth: a row without its image is told and left out, as is an image without a row. "No Finding" means
that all 14 are 0. Images are gray, a few RGBA. What the tables' many forms have in common is in ``_nih_tables``.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.random import Generator

from medflow.datasets._faults import Ground, Naming, Written, plant
from medflow.datasets._layout import files_below, is_image, locate, told
from medflow.datasets._nih_tables import BOXES, LABELS, LISTS, NOTHING, TABLES, Entry, read_tables
from medflow.datasets._nih_tables import HEAD as TABLE_HEAD
from medflow.datasets._patients import Patient, Shot, Stream, exposed, on_all_cores, shots, stream, strength
from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.datasets._synthesis import Opacity, Pathology, save
from medflow.records import DatasetCard, Generated, HeadSpec

EXPECTED = f"{TABLES[0]} beside images_001/images/*.png to images_012/images/*.png"
FINDINGS = HeadSpec(kind="independent", name=TABLE_HEAD.name, labels=LABELS)

CARD = DatasetCard(
    name="nih_chestxray14",
    title="NIH ChestX-ray14",
    heads=(FINDINGS,),
    channels=1,
    grouped_by="patient",
    kaggle="nih-chest-xrays/data",
    modality="chest radiograph",
    licence="CC0; the NIH Clinical Center asks to be acknowledged",
    citation="Wang et al., ChestX-ray8, CVPR 2017, arXiv 1705.02315",
    limits=(
        "Labels were taken from reports by a program, which its authors estimate to be right in more than 90 %; "
        "radiologists disagree with many of them, and drains betray treated findings (pneumothorax most of all)."
    ),
)


# -- reading -------------------------------------------------------------------------------------


def listing(root: Path) -> Listing:
    """Images below ``root`` that the table has. Raises DataError where there is no table, or it lacks a column."""
    base = next((base for base in (root, root / CARD.name) if any((base / name).is_file() for name in TABLES)), None)
    if base is None:
        base = locate(root, CARD.name, (), EXPECTED)
    tables = read_tables(base)
    below = PurePosixPath(base.relative_to(root).as_posix())
    files = files_below(base)
    images: dict[str, PurePosixPath] = {}
    twice = [path for path in files if is_image(path) and images.setdefault(path.name, path) is not path]
    rows = [_row(path, below, tables.entries[name]) for name, path in images.items() if name in tables.entries]
    stray = [path for path in files if not is_image(path) and not _belongs(path)]
    findings = (
        *tables.findings,
        *told("file_missing", "rows of the table without an image", tables.entries.keys() - images, "warning"),
        *told("row_missing", "images without a row in the table", images.keys() - tables.entries, "warning"),
        *told("file_repeated", "second files of one name; the first in the order of folders counts", twice, "warning"),
        *told("stray_file", "files that are no part of the dataset", stray),
    )
    return Listing(rows=tuple(sorted(rows, key=lambda row: row.image_id)), findings=findings)


def _row(path: PurePosixPath, below: PurePosixPath, entry: Entry) -> Row:
    return Row(
        image_id=path.name,
        path=(below / path).as_posix(),
        labels=entry.labels,
        group=entry.patient,
        official_split=entry.split,
        age=entry.age,
        sex=entry.sex,
        view=entry.view,
        boxes=entry.boxes,
    )


def _belongs(path: PurePosixPath) -> bool:
    """What the archive holds besides images."""
    return len(path.parts) == 1 and (path.name in (*TABLES, BOXES, *LISTS) or path.suffix == ".pdf")


# -- generating ----------------------------------------------------------------------------------

SIZE = 192
FOLDERS = 12
#: What a patient has first. Rare findings come more often than in the archive, where Hernia is 227 of 112,120, so that
#: a small twin has all of them; more than half of its images show nothing, here a third.
SHARES = {NOTHING: 0.34} | dict.fromkeys(LABELS, 0.04) | {"Infiltration": 0.08, "Effusion": 0.08, "Atelectasis": 0.06}
ALSO = 0.4
"""Share of ill patients with a second finding."""
#: Official list → its share of patients; 0.77 and 0.23 of the images in the archive.
HOMES = {"train_val_list.txt": 0.7, "test_list.txt": 0.3}
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
#: Stands where the archive has four PDF files.
_README = b"%PDF-1.4\n% Generated stand-in for NIH ChestX-ray14: drawn from formulas, no real person is shown.\n"


def twin(root: Path, request: Generated) -> Planted:
    """Writes the archive's layout below ``root``, an empty folder. Same request, same bytes."""
    for folder in range(1, FOLDERS + 1):
        (root / f"images_{folder:03d}" / "images").mkdir(parents=True)
    taken = _ill(request.seed, shots(request.seed, request.images, SHARES, _healthy))
    named = list(_named(taken))
    written = tuple(on_all_cores(lambda image: _write(root, request.seed, taken[image.shot], image), named))
    planted = Planted()
    if request.planted_faults:
        naming = _naming(first_free=taken[-1].patient.number + 1)
        ground = Ground(root, LABELS, tuple(LISTS), naming, stream(request.seed, Stream.FAULTS))
        planted, written = plant(ground, written)
    _write_tables(root, written, taken)
    return planted


def _healthy(label: str, rng: Generator) -> Pathology:
    return Pathology(haze=float(rng.uniform(0.0, 0.1)))


def _ill(seed: int, healthy: Sequence[Shot]) -> list[Shot]:
    """The same shots, their patients with what their label says; some with a second finding, the rarest so far."""
    patients: dict[int, Patient] = {}
    seen = Counter(dict.fromkeys(LABELS, 0))
    for patient in (shot.patient for shot in healthy):
        if patient.number not in patients:
            rng = stream(seed, Stream.TEXT, patient.number)
            findings = [patient.label] if patient.label != NOTHING else []
            if findings and rng.random() < ALSO:
                findings.append(min(set(LABELS) - set(findings), key=lambda label: (seen[label], label)))
            seen.update(findings)
            for finding in sorted(findings):
                patient = _suffering(patient, finding, rng)
            patients[patient.number] = replace(patient, label="|".join(sorted(findings)) or NOTHING)
    return [replace(shot, patient=patients[shot.patient.number]) for shot in healthy]


def _suffering(patient: Patient, finding: str, rng: Generator) -> Patient:
    """The patient with one finding more, drawn where a radiologist looks for it."""
    ill, side = patient.pathology, int(rng.choice([-1, 1]))
    if finding == "Emphysema":
        body = patient.anatomy
        flat = replace(body, base=body.base + 0.2, breadth=body.breadth + 0.06, heart=body.heart * 0.75)
        return replace(patient, anatomy=flat)
    if finding == "Cardiomegaly":
        return replace(patient, pathology=replace(ill, heart=ill.heart * rng.uniform(1.3, 1.6)))
    if finding == "Effusion":
        level = rng.uniform(0.2, 0.5)
        return replace(patient, pathology=replace(ill, effusion=(level, 0.0) if side < 0 else (0.0, level)))
    if finding == "Edema":
        return replace(patient, pathology=replace(ill, haze=min(0.9, ill.haze + strength(rng, 0.35, 0.7))))
    patches = tuple(replace(patch, side=patch.side or side) for patch in _patches(finding, rng))
    return replace(patient, pathology=replace(ill, opacities=(*ill.opacities, *patches)))


def _patches(finding: str, rng: Generator) -> Iterator[Opacity]:
    """Shadows of a finding; side 0 is whichever lung it is in."""

    def patch(side: int, across: float, down: float, radius: float, low: float, ragged: float = 1.0) -> Opacity:
        jitter = rng.normal(0.0, 0.03, size=2)
        return Opacity(side, across + jitter[0], down + jitter[1], radius, strength(rng, low, 1.0), ragged)

    middle, height = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.8)
    match finding:
        case "Nodule":
            yield patch(0, middle, height, rng.uniform(0.06, 0.09), 0.6, ragged=0.0)
        case "Mass":
            yield patch(0, middle, height, rng.uniform(0.16, 0.22), 0.6, ragged=0.0)
        case "Consolidation":
            yield patch(0, middle, rng.uniform(0.0, 0.4), rng.uniform(0.3, 0.4), 0.7)
        case "Pneumonia":
            yield patch(0, middle, rng.uniform(0.7, 0.9), rng.uniform(0.3, 0.4), 0.6)
        case "Infiltration":
            yield from (patch(side, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), 0.14, 0.3) for side in (-1, -1, 1, 1))
        case "Atelectasis":  # a band at the base
            yield from (patch(0, across, 1.0, 0.1, 0.8) for across in (0.1, 0.4, 0.7))
        case "Fibrosis":  # nets at both bases
            places = [(side, across) for side in (-1, 1) for across in (0.0, 0.3, 0.6, 0.9)]
            yield from (patch(side, across, 0.95, 0.05, 0.7, 0.0) for side, across in places)
        case "Pleural_Thickening":  # along the ribs
            yield from (patch(0, 1.15, down, 0.08, 0.8) for down in (0.1, 0.3, 0.5, 0.7))
        case "Pneumothorax":  # the collapsed lung at its root
            yield patch(0, 0.05, 0.45, rng.uniform(0.2, 0.26), 0.8, ragged=0.0)
        case "Hernia":  # beside the heart, on the diaphragm
            yield patch(-1, -0.05, 1.05, rng.uniform(0.12, 0.16), 0.8, ragged=0.0)


def _named(taken: Sequence[Shot]) -> Iterator[Written]:
    """Every shot's place: folders fill up in order; a patient is in one official list, a label in both."""
    homes: dict[int, str] = {}
    patients: Counter[tuple[str, str]] = Counter()
    for shot in taken:
        labels, number = shot.patient.label.split("|"), shot.patient.number
        if number not in homes:
            homes[number] = min(HOMES, key=lambda home: min(_fullness(patients[label, home], home) for label in labels))
            patients.update((label, homes[number]) for label in labels)
        person, folder = f"{number:08d}", 1 + shot.index * FOLDERS // len(taken)
        yield _place(shot.index, person, shot.turn - 1, folder, shot.patient.label, homes[number])


def _fullness(patients: int, home: str) -> float:
    """The first of a label goes to train, the second to test, the third to train: val is taken from there."""
    return (patients + 0.5) / HOMES[home]


def _place(shot: int, person: str, follow_up: int, folder: int, label: str, home: str | None) -> Written:
    path = f"images_{folder:03d}/images/{person}_{follow_up:03d}.png"
    return Written(shot, path, label, patient=person, split=home)


def _naming(first_free: int) -> Naming:
    people, later = count(first_free), count(100)

    def name(original: Written, label: str, split: str | None, patient: str | None) -> Written:
        person = patient or f"{next(people):08d}"
        folder = int(original.path[len("images_") :][:3])
        return _place(original.shot, person, next(later) if patient else 0, folder, label, split)

    return name


def _write(root: Path, seed: int, shot: Shot, image: Written) -> Written:
    seen = exposed(seed, shot, (SIZE, SIZE)).image
    is_rgba = shot.index % 40 == 7
    opaque = np.full_like(seen, 255)
    save(root / image.path, np.stack([seen, seen, seen, opaque], axis=-1) if is_rgba else seen)
    return image


def _write_tables(root: Path, written: Iterable[Written], taken: Sequence[Shot]) -> None:
    ordered = sorted(written, key=lambda image: PurePosixPath(image.path).name)
    with (root / TABLES[0]).open("w", newline="", encoding="utf-8") as lines:
        lines.write(f"{HEADER}\n")
        csv.writer(lines, lineterminator="\n").writerows(_cells(image, taken[image.shot]) for image in ordered)
    with (root / BOXES).open("w", newline="", encoding="utf-8") as lines:
        lines.write("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
        csv.writer(lines, lineterminator="\n").writerows(
            row for image in ordered for row in _boxes(image, taken[image.shot])
        )
    for name in LISTS:
        (root / name).write_text("\n".join(PurePosixPath(image.path).name for image in ordered if image.split == name))
    for name in ("README_CHESTXRAY", "FAQ_CHESTXRAY", "LOG_CHESTXRAY", "ARXIV_V5_CHESTXRAY"):
        (root / f"{name}.pdf").write_bytes(_README)


def _cells(image: Written, shot: Shot) -> tuple[object, ...]:
    person, name = shot.patient, PurePosixPath(image.path).name
    number, follow_up = int(str(image.patient)), int(name[-7:-4])
    return name, image.label, follow_up, number, person.age, person.sex, shot.view, 2500, 2048, 0.168, 0.168, None


def _boxes(image: Written, shot: Shot) -> Iterator[tuple[object, ...]]:
    """As in the archive: images of one finding, and Infiltration under another name."""
    if image.label in ("Mass", "Nodule", "Infiltration") and shot.turn == 1:
        label = "Infiltrate" if image.label == "Infiltration" else image.label
        for shadow in shot.patient.pathology.opacities[:1]:  # none under a label that is a planted fault
            yield PurePosixPath(image.path).name, label, *_around(shot.patient, shadow), None


def _around(patient: Patient, shadow: Opacity) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels, before the patient's pose; the arithmetic of ``_synthesis._patch``."""
    body = patient.anatomy
    x = shadow.side * (body.gap + body.breadth * (0.15 + 0.65 * shadow.across))
    y = body.apex + (body.base - body.apex) * (0.25 + 0.65 * shadow.down)
    left, top = ((middle - shadow.radius + 1) * SIZE / 2 for middle in (x, y))
    return max(0.0, left), max(0.0, top), shadow.radius * SIZE, shadow.radius * SIZE


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin)

"""``phantom``: a generated chest radiograph dataset that needs no network and has every kind of head.

Layout::

    phantom.csv              one row an image: labels, patient, age, sex, view, site, text
    images/P0001_1.png       gray, 128 x 128; patient number, then the patient's image
    masks/P0001_1.png        0 or 255: both lungs without the heart's shadow

Nothing in it is a real person. How plain a finding is varies from patient to patient, and healthy patients
have harmless shadows, so that a good small model reaches 0.85 to 0.97 macro AUROC and none reaches 1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import count
from pathlib import Path, PurePosixPath

from numpy.random import Generator

from medflow.datasets._faults import Ground, Naming, Written, plant
from medflow.datasets._layout import files_below, is_image, locate, told
from medflow.datasets._patients import (
    Shot,
    Stream,
    consolidation,
    effusion,
    exposed,
    large_heart,
    nodule,
    on_all_cores,
    shots,
    stream,
)
from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.datasets._synthesis import Pathology, save
from medflow.errors import DataError
from medflow.records import DatasetCard, Generated, HeadSpec

SIZE = 128
TABLE = "phantom.csv"
COLUMNS = ("image", "diagnosis", "signs", "patient", "age", "sex", "view", "site", "text")
EXPECTED = f"a folder with {TABLE}, images/ and masks/; `medflow phantom phantom --to DIR --images 600` writes one"
PLAIN = 0.2
"""A shadow that takes less than this share of the lung's darkness is harmless, and no sign."""
UNREPORTED = 0.125
"""Share of images without a report."""
HIDDEN = 0.08
"""Share of ill patients whose radiograph shows nothing plain: what keeps a perfect reader below 1."""

DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=("clear", "pneumonia", "nodule"))
SIGNS = HeadSpec(kind="independent", name="signs", labels=("consolidation", "effusion", "round_shadow", "large_heart"))
LUNGS = HeadSpec(kind="mask", name="lungs", labels=("lungs",))
SHARES = {"clear": 0.4, "pneumonia": 0.35, "nodule": 0.25}

CARD = DatasetCard(
    name="phantom",
    title="Phantom: generated chest radiographs",
    heads=(DIAGNOSIS, SIGNS, LUNGS),
    channels=1,
    grouped_by="patient",
    modality="generated radiograph",
    licence="generated; no rights reserved",
    limits="Drawn from formulas: it shows that the machinery works and says nothing about patients. "
    "Its reports name every sign: a model that reads them has the label `signs` in words, and most of `diagnosis`.",
)


# -- reading -------------------------------------------------------------------------------------


def listing(root: Path) -> Listing:
    """Reads ``phantom.csv`` below ``root``. Raises DataError where there is none, or it lacks a column."""
    base = locate(root, "phantom", ("images",), EXPECTED)
    below = PurePosixPath(base.relative_to(root).as_posix())
    records = _records(base / TABLE)
    files = {path.as_posix() for path in files_below(base)}
    images = {path for path in files if path.startswith("images/") and is_image(PurePosixPath(path))}
    known = {f"images/{record['image']}": record for record in records}
    repeated = {record["image"] for record in records if known[f"images/{record['image']}"] is not record}
    rows = [_row(record, below, files) for path, record in known.items() if path in images]
    unknown = [path for path, record in known.items() if record["diagnosis"] not in DIAGNOSIS.labels]
    masks = {path for path in files if path.replace("masks/", "images/", 1) in known}
    findings = (
        *told("file_missing", f"rows of {TABLE} without an image", known.keys() - images, "warning"),
        *told("row_repeated", f"images with more than one row in {TABLE}; the last one counts", repeated, "warning"),
        *told("row_missing", f"images without a row in {TABLE}", images - known.keys()),
        *told("unknown_label", "images whose diagnosis is none of the dataset's labels", unknown),
        *told("stray_file", "files that are no part of the dataset", files - images - masks - {TABLE}),
    )
    return Listing(rows=tuple(sorted(rows, key=lambda row: row.image_id)), findings=findings)


def _records(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        raise DataError(f"{TABLE} is missing beside images/", hint=f"expected {EXPECTED}")
    with table.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines, restval="")
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{TABLE} lacks the columns {', '.join(missing)}", hint=f"expected {', '.join(COLUMNS)}")
        return list(reader)


def _row(record: dict[str, str], below: PurePosixPath, files: set[str]) -> Row:
    mask = f"masks/{record['image']}"
    signs = set(record["signs"].split("|"))
    labels = {f"{DIAGNOSIS.name}.{label}": int(label == record["diagnosis"]) for label in DIAGNOSIS.labels}
    labels |= {f"{SIGNS.name}.{label}": int(label in signs) for label in SIGNS.labels}
    return Row(
        image_id=PurePosixPath(record["image"]).stem,
        path=(below / "images" / record["image"]).as_posix(),
        labels=labels,
        group=record["patient"] or None,
        mask_path=(below / mask).as_posix() if mask in files else None,
        text=record["text"] or None,
        age=_years(record),
        sex=record["sex"] or None,
        view=record["view"] or None,
        site=record["site"] or None,
    )


def _years(record: dict[str, str]) -> float | None:
    try:
        return float(record["age"]) if record["age"] else None
    except ValueError:
        raise DataError(
            f"{TABLE} gives {record['image']} the age {record['age']!r}", hint="expected years, or nothing"
        ) from None


# -- generating ----------------------------------------------------------------------------------


def twin(root: Path, request: Generated) -> Planted:
    """Writes images, masks and table below ``root``, an empty folder. Same request, same bytes."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    taken = shots(request.seed, request.images, SHARES, _ill)
    written = tuple(on_all_cores(lambda shot: _write(root, request.seed, shot), taken))
    planted = Planted()
    if request.planted_faults:
        rng = stream(request.seed, Stream.FAULTS)
        naming = _naming(first_free=taken[-1].patient.number + 1)
        planted, written = plant(Ground(root, DIAGNOSIS.labels, (), naming, rng), written)
    _write_table(root / TABLE, written, taken, request.seed)
    return planted


def _ill(label: str, rng: Generator) -> Pathology:
    """What a patient of that diagnosis suffers from; effusion and a large heart also come alone."""
    opacities = [nodule(rng, 0.05, PLAIN)] if rng.random() < 0.2 else []
    opacities += [consolidation(rng, 0.05, PLAIN)] if rng.random() < 0.2 else []
    if rng.random() >= HIDDEN:
        if label == "pneumonia":
            opacities += [consolidation(rng) for _ in range(int(rng.integers(2, 5)))]
        if label == "nodule":
            opacities += [nodule(rng) for _ in range(int(rng.integers(3, 8)))]
    wet = rng.random() < 0.2
    return Pathology(
        opacities=tuple(opacities),
        effusion=effusion(rng) if wet else (0.0, 0.0),
        heart=large_heart(rng) if rng.random() < 0.2 else 1.0,
    )


def signs_of(pathology: Pathology) -> tuple[str, ...]:
    """The signs that a careful reader would report, in the order of the head."""
    plain = [opacity for opacity in pathology.opacities if opacity.strength >= PLAIN]
    present = {
        "consolidation": any(opacity.ragged for opacity in plain),
        "effusion": any(pathology.effusion),
        "round_shadow": any(not opacity.ragged for opacity in plain),
        "large_heart": pathology.heart > 1.0,
    }
    return tuple(label for label in SIGNS.labels if present[label])


_PRESENT = {
    "consolidation": "Patchy opacity in the {side} lung.",
    "effusion": "Pleural effusion with a fluid level.",
    "round_shadow": "Round, well-defined shadows in the {side} lung.",
    "large_heart": "The heart is enlarged.",
}
_ABSENT = {
    "consolidation": "No focal consolidation.",
    "effusion": "No pleural effusion.",
    "round_shadow": "No nodule or mass.",
    "large_heart": "Heart size is normal.",
}


def report(pathology: Pathology, view: str, rng: Generator) -> str:
    """A short report: every sign that is present, and some that are not, negated."""
    signs = signs_of(pathology)
    sentences = [f"{view} chest radiograph."]
    sentences += [_PRESENT[sign].format(side=_side(pathology, sign)) for sign in signs]
    sentences += [_ABSENT[sign] for sign in SIGNS.labels if sign not in signs and rng.random() < 0.6]
    return " ".join(sentences)


def _side(pathology: Pathology, sign: str) -> str:
    ragged = sign == "consolidation"
    sides = {o.side for o in pathology.opacities if o.strength >= PLAIN and bool(o.ragged) == ragged}
    return "left or right" if not sides else "right" if sides == {-1} else "left" if sides == {1} else "right and left"


def _write(root: Path, seed: int, shot: Shot) -> Written:
    name = f"P{shot.patient.number:04d}_{shot.turn}.png"
    seen = exposed(seed, shot, (SIZE, SIZE))
    save(root / "images" / name, seen.image)
    save(root / "masks" / name, seen.lungs * 255)
    patient = f"P{shot.patient.number:04d}"
    return Written(shot.index, f"images/{name}", shot.patient.label, f"masks/{name}", patient)


def _naming(first_free: int) -> Naming:
    numbers = count(first_free)

    def name(original: Written, label: str, split: str | None, patient: str | None) -> Written:
        person = patient or f"P{next(numbers):04d}"
        file = f"{person}_{9 if patient else 1}.png"
        return Written(original.shot, f"images/{file}", label, f"masks/{file}", person)

    return name


def _write_table(table: Path, written: Sequence[Written], taken: Sequence[Shot], seed: int) -> None:
    with table.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for image in sorted(written, key=lambda image: image.path):
            writer.writerow(_cells(image, taken[image.shot], stream(seed, Stream.TEXT, image.shot)))


def _cells(image: Written, shot: Shot, rng: Generator) -> tuple[object, ...]:
    person = shot.patient
    text = report(person.pathology, shot.view, rng) if rng.random() >= UNREPORTED else ""
    signs = "|".join(signs_of(person.pathology))
    name = PurePosixPath(image.path).name
    return name, image.label, signs, image.patient, person.age, person.sex, shot.view, person.site, text


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin)

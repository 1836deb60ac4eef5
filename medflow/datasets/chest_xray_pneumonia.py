"""``chest_xray_pneumonia``: Chest X-Ray Images (Pneumonia) of Kermany et al., children, two classes.

Layout, as the archive extracts::

    chest_xray/{train,val,test}/NORMAL/{IM-0115-0001,NORMAL2-IM-0588-0001-0002}.jpeg
    chest_xray/{train,val,test}/PNEUMONIA/person1180_virus_2008.jpeg
    chest_xray/chest_xray/...    the same files a second time: skipped, and told
    chest_xray/__MACOSX/...      litter: skipped, and told

    chest_xray/reports.csv       not in the archive: your own reports, columns image (train/NORMAL/... or a file's
                                 name) and text; an image without a row has none

Sizes differ from image to image; most are gray, some RGB.

The patient is in the file name. ``person<n>_<kind>_<k>`` is image k of one child, and persons are numbered
**for each kind apart**: in the archive's own lists no ``person<n>_bacteria`` and no ``person<n>_virus`` is in
both train and test (77 and 126 test persons), while 170 bare numbers are in both with differing kinds. So the
patient is ``person<n>_<kind>``. Healthy children are ``IM-<n>`` or ``NORMAL2-IM-<n>``, two series with
numbers of their own by the same argument (94 bare numbers in both lists, none with its prefix); the rest of the
name is the image's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import cv2
from numpy.random import Generator

from medflow.datasets._faults import Ground, Naming, Written, plant
from medflow.datasets._layout import files_below, is_image, locate, told
from medflow.datasets._patients import Shot, Stream, consolidation, exposed, on_all_cores, shots, stream, strength
from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.datasets._synthesis import Pathology, save
from medflow.records import DatasetCard, Generated, HeadSpec
from medflow.report_table import read_reports

FOLDER = "chest_xray"
SPLITS = ("train", "val", "test")
CLASSES = ("NORMAL", "PNEUMONIA")
REPORTS = "reports.csv"
EXPECTED = f"{FOLDER}/{{train,val,test}}/{{NORMAL,PNEUMONIA}}/*.jpeg, or the folder {FOLDER} itself"
PATIENT = re.compile(r"(person\d+_(?:bacteria|virus)|(?:NORMAL2-)?IM-\d+)(?=[-_])")

DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=CLASSES)

CARD = DatasetCard(
    name="chest_xray_pneumonia",
    title="Chest X-Ray Images (Pneumonia)",
    heads=(DIAGNOSIS,),
    channels=1,
    grouped_by="patient",
    kaggle="paultimothymooney/chest-xray-pneumonia",
    modality="chest radiograph",
    licence="CC BY 4.0",
    citation="Kermany et al., Cell 172 (2018) 1122; Mendeley Data v2, doi 10.17632/rscbjbr9sj.2",
    limits="Children of one to five years from one hospital; the official val folder has 16 images only.",
)


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawers:
    """Every file of the archive, sorted by what its path says it is."""

    images: tuple[PurePosixPath, ...]
    nested: tuple[PurePosixPath, ...]
    """Second copies, by the path of the first."""
    stray: tuple[PurePosixPath, ...]


def listing(root: Path) -> Listing:
    """Images below ``root``, with patient and official split. Raises DataError where it holds no split folder."""
    marks = [f"{split}/{label}" for split in SPLITS for label in CLASSES]
    base = locate(root, FOLDER, marks, EXPECTED)
    below = PurePosixPath(base.relative_to(root).as_posix())
    drawers = _sort(files_below(base))
    reports = read_reports(base / REPORTS) if (base / REPORTS).is_file() else {}
    places = {name for path in drawers.images for name in (path.as_posix(), path.name)}
    unknown = [path for path in drawers.images if path.parts[1] not in CLASSES]
    nameless = [path for path in drawers.images if patient_of(path.name) is None]
    findings = (
        *told("unknown_label", "images in a folder that is no class of this dataset", unknown),
        *told("patient_unknown", "file names that do not tell the patient: each is a group of its own", nameless),
        *told("nested_copy", f"second copies in a nested {FOLDER} folder, skipped", drawers.nested),
        *told("report_unplaced", f"rows of {REPORTS} that name no image", sorted(reports.keys() - places), "warning"),
        *told("stray_file", "files that are no part of the dataset", drawers.stray),
    )
    rows = tuple(_row(path, below, reports) for path in drawers.images)
    return Listing(rows=tuple(sorted(rows, key=lambda row: row.image_id)), findings=findings)


def patient_of(file_name: str) -> str | None:
    """``person<n>_<kind>``, ``IM-<n>`` or ``NORMAL2-IM-<n>``; None for any other name."""
    match = PATIENT.match(file_name)
    return match[1] if match else None


def _sort(files: Iterable[PurePosixPath]) -> _Drawers:
    images, nested, stray = [], [], []
    files = tuple(files)
    outer = frozenset(files)
    for path in files:
        if len(path.parts) == 3 and path.parts[0] in SPLITS and is_image(path):
            images.append(path)
        elif path.parts[0] == FOLDER and path.relative_to(FOLDER) in outer and is_image(path):
            nested.append(path)
        elif path != PurePosixPath(REPORTS):
            stray.append(path)
    return _Drawers(tuple(images), tuple(nested), tuple(stray))


def _row(path: PurePosixPath, below: PurePosixPath, reports: Mapping[str, str]) -> Row:
    split, label, name = path.parts
    return Row(
        image_id=path.as_posix(),
        path=(below / path).as_posix(),
        labels={f"{DIAGNOSIS.name}.{one}": int(one == label) for one in CLASSES},
        group=patient_of(name) or path.as_posix(),
        text=reports.get(path.as_posix(), reports.get(name)) or None,
        official_split=split,
    )


# -- generating ----------------------------------------------------------------------------------

#: Shares of the archive: about one healthy child to three with pneumonia, two thirds of it bacterial.
SHARES = {"normal": 0.27, "bacteria": 0.47, "virus": 0.26}
#: The archive's val folder has 16 of 5856 images; a twin keeps enough of it to be of use.
SPLIT_SHARES = {"train": 0.78, "val": 0.08, "test": 0.14}
_SIZES = (224, 400)


def twin(root: Path, request: Generated) -> Planted:
    """Writes the archive's layout below ``root``, an empty folder, litter and nested copies included."""
    for split in SPLITS:
        for label in CLASSES:
            (root / FOLDER / split / label).mkdir(parents=True)
    taken = shots(request.seed, request.images, SHARES, _ill)
    named = _named(taken)
    written = tuple(on_all_cores(lambda image: _write(root, request.seed, taken[image.shot], image), named))
    planted = Planted()
    if request.planted_faults:
        naming = _naming(first_free=taken[-1].patient.number + 1, next_image=len(taken) + 1)
        planted, written = plant(Ground(root, CLASSES, SPLITS, naming, stream(request.seed, Stream.FAULTS)), written)
    _litter(root / FOLDER, written)
    return planted


def _ill(kind: str, rng: Generator) -> Pathology:
    """Bacteria: one or two dense patches. Virus: haze over both lungs. Some healthy lungs have a faint shadow."""
    mimic = (consolidation(rng, 0.05, 0.2),) if rng.random() < 0.2 else ()
    if kind == "bacteria":
        patches = tuple(consolidation(rng, 0.3, 0.95) for _ in range(int(rng.integers(1, 3))))
        return Pathology(opacities=patches, haze=float(rng.uniform(0.0, 0.2)))
    if kind == "virus":
        return Pathology(opacities=mimic, haze=strength(rng, 0.2, 0.6))
    return Pathology(opacities=mimic, haze=float(rng.uniform(0.0, 0.15)))


def _named(taken: Sequence[Shot]) -> list[Written]:
    """Every shot's place: a patient's images lie in one split, and no split lacks a class."""
    homes: dict[int, str] = {}
    filled = {(kind, split): 0 for kind in SHARES for split in SPLITS}
    named = []
    for shot in taken:
        patient = shot.patient
        if patient.number not in homes:
            homes[patient.number] = min(SPLITS, key=lambda split: _fullness(filled[patient.label, split], split))
        split = homes[patient.number]
        filled[patient.label, split] += 1
        named.append(_place(shot.index, _person(patient.label, patient.number), split, shot.index + 1, shot.turn))
    return named


def _fullness(images: int, split: str) -> tuple[bool, float]:
    return images > 0, (images + 1) / SPLIT_SHARES[split]


def _person(kind: str, number: int) -> str:
    if kind == "normal":
        return f"IM-{number:04d}" if number % 2 else f"NORMAL2-IM-{number:04d}"
    return f"person{number}_{kind}"


def _place(shot: int, person: str, split: str | None, image: int, turn: int, label: str | None = None) -> Written:
    """A file by the archive's grammar; ``label`` is the folder, and by default the class that the name states."""
    if person.startswith("person"):
        name, folder = f"{person}_{image}.jpeg", label or "PNEUMONIA"
    else:
        name, folder = f"{person}-0001{f'-{turn:04d}' if turn > 1 else ''}.jpeg", label or "NORMAL"
    return Written(shot, f"{FOLDER}/{split}/{folder}/{name}", folder, patient=person, split=split)


def _naming(first_free: int, next_image: int) -> Naming:
    people, images = count(first_free), count(next_image)

    def name(original: Written, label: str, split: str | None, patient: str | None) -> Written:
        kind = "normal" if label == "NORMAL" else "bacteria"
        person = patient or _person(kind, next(people))
        return _place(original.shot, person, split, next(images), 9, label)

    return name


def _write(root: Path, seed: int, shot: Shot, image: Written) -> Written:
    rng = stream(seed, Stream.LAYOUT, shot.index)
    height, width = (int(side) for side in rng.integers(*_SIZES, size=2))
    seen = exposed(seed, shot, (height, width)).image
    is_rgb = rng.random() < 0.1
    save(root / image.path, cv2.merge([seen] * 3) if is_rgb else seen)
    return image


def _litter(base: Path, written: Sequence[Written]) -> None:
    """What the archive holds besides: a second copy (here of val alone), Finder's notes, a resource fork."""
    for image in written:
        if image.split == "val":
            inside = PurePosixPath(image.path).relative_to(FOLDER)
            copy = base / FOLDER / inside
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((base / inside).read_bytes())
    (base / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    fork = base / "__MACOSX" / FOLDER / "train" / "NORMAL"
    fork.mkdir(parents=True)
    (fork / "._IM-0001-0001.jpeg").write_bytes(b"\x00\x05\x16\x07")


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin)

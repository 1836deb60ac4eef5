"""``covid_radiography``: the COVID-19 Radiography Database, four classes and a lung mask for every image.

Layout, as the archive extracts (its sizes, modes and spellings are kept by the twin)::

    COVID-19_Radiography_Dataset/
        README.md.txt
        COVID.metadata.xlsx        FILE NAME, FORMAT, SIZE, URL; one sheet a class
        COVID/images/COVID-1.png   299 x 299, gray, a few RGB
        COVID/masks/COVID-1.png    256 x 256, RGB, 0 and 255

The sheets say ``NORMAL-8374`` where the file is ``Normal-8374.png``, and ``256*256`` for every image, so names
are compared without case and the size column is not read. No patient is known: the archive has exact and near
duplicates (COVID-2807 to COVID-2813 are one picture), and these make the groups. URL becomes the source, for
the shortcut audit only: whole classes have a single source, so it cannot be a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import cv2
from numpy.random import Generator

from medflow.datasets._faults import UNKNOWN_LABEL, Ground, Naming, Written, plant
from medflow.datasets._layout import files_below, is_image, locate, told
from medflow.datasets._patients import (
    Shot,
    Stream,
    consolidation,
    exposed,
    on_all_cores,
    shots,
    stream,
    strength,
)
from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.datasets._synthesis import Pathology, save
from medflow.datasets._workbook import read_rows, write_rows
from medflow.records import DatasetCard, Finding, Generated, HeadSpec

FOLDER = "COVID-19_Radiography_Dataset"
CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
EXPECTED = f"{FOLDER}/<class>/images/*.png with classes {', '.join(CLASSES)}, or the folder {FOLDER} itself"
HEADER = ("FILE NAME", "FORMAT", "SIZE", "URL")

DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=CLASSES)
LUNG = HeadSpec(kind="mask", name="lung", labels=("lung",))

CARD = DatasetCard(
    name="covid_radiography",
    title="COVID-19 Radiography Database",
    heads=(DIAGNOSIS, LUNG),
    channels=1,
    grouped_by="near-duplicates",
    kaggle="tawsifurrahman/covid19-radiography-database",
    modality="chest radiograph",
    licence="research use; each source collection has its own terms",
    citation=(
        "Chowdhury et al., IEEE Access 8 (2020) 132665; "
        "Rahman et al., Computers in Biology and Medicine 132 (2021) 104319"
    ),
    limits=(
        "Whole classes come from one collection each (every Viral Pneumonia image from one of children), "
        "so a model can tell classes by their source; patients are unknown."
    ),
)


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawers:
    """Every file of the archive, sorted by what its path says it is."""

    images: tuple[PurePosixPath, ...]
    masks: Mapping[tuple[str, str], PurePosixPath]
    """(class, stem) → mask."""
    sheets: tuple[PurePosixPath, ...]
    stray: tuple[PurePosixPath, ...]


def listing(root: Path) -> Listing:
    """Images, masks and sheets below ``root``. Raises DataError where root holds no class folder."""
    base = locate(root, FOLDER, [f"{label}/images" for label in CLASSES], EXPECTED)
    below = PurePosixPath(base.relative_to(root).as_posix())
    drawers = _sort(files_below(base))
    sources, findings = _sources(base, drawers)
    rows = tuple(_row(path, below, drawers.masks, sources) for path in drawers.images)
    return Listing(rows=tuple(sorted(rows, key=lambda row: row.image_id)), findings=(*findings, *_oddities(drawers)))


def _sort(files: Iterable[PurePosixPath]) -> _Drawers:
    images, masks, sheets, stray = [], {}, [], []
    for path in files:
        match path.parts:
            case (_, "images", _) if is_image(path):
                images.append(path)
            case (label, "masks", _) if is_image(path):
                masks[label, path.stem] = path
            case (name,) if name.endswith(".metadata.xlsx") and not name.startswith((".", "~")):
                sheets.append(path)
            case (name,) if name.lower().startswith("readme"):
                pass
            case _:
                stray.append(path)
    return _Drawers(tuple(images), masks, tuple(sheets), tuple(stray))


def _row(
    path: PurePosixPath,
    below: PurePosixPath,
    masks: Mapping[tuple[str, str], PurePosixPath],
    sources: Mapping[str, str],
) -> Row:
    label = path.parts[0]
    mask = masks.get((label, path.stem))
    return Row(
        image_id=f"{label}/{path.name}",
        path=(below / path).as_posix(),
        labels={f"{DIAGNOSIS.name}.{name}": int(name == label) for name in CLASSES},
        mask_path=(below / mask).as_posix() if mask is not None else None,
        source=sources.get(path.stem.lower()),
    )


def _sources(base: Path, drawers: _Drawers) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """Lower-case file stem → URL, from every sheet, and what in them matches no image."""
    sources: dict[str, str] = {}
    unreadable = []
    for sheet in drawers.sheets:
        rows = read_rows(base / sheet, HEADER)
        if rows is None:
            unreadable.append(sheet)
            continue
        sources.update({str(name).strip().lower(): str(url).strip() for name, _, _, url in rows if name and url})
    stems = {path.stem.lower() for path in drawers.images}
    return sources, (
        *told(
            "metadata_unreadable",
            f"sheets that cannot be read, or lack a column of {', '.join(HEADER)}",
            unreadable,
            "warning",
        ),
        *told("metadata_without_image", "names in the sheets without an image", sources.keys() - stems),
        *told("image_without_metadata", "images without a line in the sheets", stems - sources.keys()),
    )


def _oddities(drawers: _Drawers) -> tuple[Finding, ...]:
    seen = {(path.parts[0], path.stem) for path in drawers.images}
    alone = [path for key, path in drawers.masks.items() if key not in seen]
    unknown = [path for path in drawers.images if path.parts[0] not in CLASSES]
    return (
        *told("unknown_label", "images in a folder that is no class of this dataset", unknown),
        *told("mask_without_image", "masks without an image of the same name", alone),
        *told("stray_file", "files that are no part of the dataset", drawers.stray),
    )


# -- generating ----------------------------------------------------------------------------------

#: Images of each class in the archive.
SHARES = {"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192, "Viral Pneumonia": 1345}
IMAGE_SIZE, MASK_SIZE = 299, 256
_RSNA = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data"
_KERMANY = "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia"
#: Where each class of the archive comes from; the shares within a class are its own, rounded.
SOURCES: dict[str, dict[str, float]] = {
    "COVID": {
        "https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/#1590858128006-9e640421-6711": 0.69,
        "https://github.com/armiro/COVID-CXNet": 0.11,
        "https://eurorad.org": 0.07,
        "https://github.com/ml-workgroup/covid-19-image-repository/tree/master/png": 0.05,
        "https://github.com/ieee8023/covid-chestxray-dataset": 0.05,
        "https://sirm.org/category/senza-categoria/covid-19/": 0.03,
    },
    "Lung_Opacity": {_RSNA: 1.0},
    "Normal": {_RSNA: 0.87, _KERMANY: 0.13},
    "Viral Pneumonia": {_KERMANY: 1.0},
}
_README = "Generated stand-in for the COVID-19 Radiography Database: drawn from formulas, no real person is shown.\n"


def twin(root: Path, request: Generated) -> Planted:
    """Writes the archive's layout below ``root``, an empty folder. Same request, same bytes."""
    for label in CLASSES:
        for part in ("images", "masks"):
            (root / FOLDER / label / part).mkdir(parents=True)
    taken = shots(request.seed, request.images, SHARES, _ill)
    named = _numbered(taken)
    written = tuple(on_all_cores(lambda image: _write(root, request.seed, taken[image.shot], image), named))
    planted = Planted()
    if request.planted_faults:
        naming = _naming({label: sum(image.label == label for image in named) for label in CLASSES})
        planted, written = plant(Ground(root, CLASSES, (), naming, stream(request.seed, Stream.FAULTS)), written)
    for label in CLASSES:
        _write_sheet(root, label, [image for image in written if image.label == label], request.seed)
    (root / FOLDER / "README.md.txt").write_text(_README)
    return planted


def _ill(label: str, rng: Generator) -> Pathology:
    """COVID: patches at the edges of both lungs. Lung opacity: one patch. Viral pneumonia: haze over both."""
    mimic = (consolidation(rng, 0.05, 0.2),) if rng.random() < 0.2 else ()
    if label == "COVID":
        both = tuple(consolidation(rng, 0.3, 0.8) for _ in range(int(rng.integers(2, 5))))
        return Pathology(opacities=both, haze=float(rng.uniform(0.0, 0.2)))
    if label == "Lung_Opacity":
        return Pathology(opacities=(consolidation(rng, 0.35, 0.95),), haze=float(rng.uniform(0.0, 0.15)))
    if label == "Viral Pneumonia":
        return Pathology(opacities=mimic, haze=strength(rng, 0.2, 0.6))
    return Pathology(opacities=mimic, haze=float(rng.uniform(0.0, 0.15)))


def _numbered(taken: Sequence[Shot]) -> list[Written]:
    numbers = {label: count(1) for label in CLASSES}
    return [_named(shot.index, shot.patient.label, next(numbers[shot.patient.label])) for shot in taken]


def _named(shot: int, label: str, number: int) -> Written:
    """The archive's naming; patients are left out, since it knows none."""
    file = f"{label}-{number}.png"
    return Written(shot, f"{FOLDER}/{label}/images/{file}", label, f"{FOLDER}/{label}/masks/{file}")


def _naming(counts: Mapping[str, int]) -> Naming:
    numbers = {label: count(number + 1) for label, number in {**counts, UNKNOWN_LABEL: 0}.items()}

    def name(original: Written, label: str, split: str | None, patient: str | None) -> Written:
        return _named(original.shot, label, next(numbers[label]))

    return name


def _number(image: Written) -> int:
    return int(PurePosixPath(image.path).stem.rpartition("-")[2])


def _write(root: Path, seed: int, shot: Shot, image: Written) -> Written:
    seen = exposed(seed, shot, (IMAGE_SIZE, IMAGE_SIZE))
    is_rgb = image.label == "Viral Pneumonia" and _number(image) % 10 == 1
    picture = cv2.merge([seen.image] * 3) if is_rgb else seen.image
    mask = cv2.resize(seen.lungs * 255, (MASK_SIZE, MASK_SIZE), interpolation=cv2.INTER_NEAREST)
    save(root / image.path, picture)
    save(root / str(image.mask_path), cv2.merge([mask] * 3))
    return image


def _write_sheet(root: Path, label: str, images: Sequence[Written], seed: int) -> None:
    """As in the archive: upper-case NORMAL, and a size that no image has."""
    rng = stream(seed, Stream.LAYOUT, CLASSES.index(label))
    urls, shares = zip(*SOURCES[label].items(), strict=True)
    ordered = sorted(images, key=_number)
    names = [PurePosixPath(image.path).stem.replace("Normal", "NORMAL") for image in ordered]
    rows = [(name, "PNG", "256*256", str(rng.choice(urls, p=shares))) for name in names]
    write_rows(root / FOLDER / f"{label}.metadata.xlsx", HEADER, rows)


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin)

"""``ham10000``: dermatoscopic photographs of skin lesions, seven classes and the lesion's outline as a mask.

Layout, as the archive extracts::

    GroundTruth.csv                           image,MEL,NV,BCC,AKIEC,BKL,DF,VASC; one 1.0 a row
    images/ISIC_0024306.jpg                   600 x 450, RGB
    masks/ISIC_0024306_segmentation.png       600 x 450, gray, 0 and 255; 402 of 10,015 are palette images with
                                              index 0 for the lesion, which the palette maps to white

What this archive lacks is ``HAM10000_metadata.csv`` (lesion_id, image_id, dx, dx_type, age, sex, localization) of the
original publication. 7,470 lesions have 10,015 images, so that without lesion ids a split would leak. The table is
read beside GroundTruth.csv where somebody put it there, or from the path given with ``--metadata``; its dx column
stands in for GroundTruth.csv where that is absent.

Pairs of equal bytes exist (ISIC_0024366 and ISIC_0029861, one lesion). Age and sex are unknown for 57 images.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medflow.datasets._layout import files_below, is_image, locate, told
from medflow.datasets._photographs import CLASSES, IMAGES, MASK_SUFFIX, MASKS, METADATA, TRUTH, twin
from medflow.datasets._spec import DatasetSpec, Listing, Row
from medflow.errors import DataError
from medflow.records import DatasetCard, Finding, HeadSpec

EXPECTED = f"{TRUTH} or {METADATA}, beside {IMAGES}/*.jpg and {MASKS}/*{MASK_SUFFIX}.png"
LABEL_COLUMNS = ("image", *CLASSES)
ABOUT_COLUMNS = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
SEXES = {"female": "F", "male": "M"}

DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=CLASSES)
LESION = HeadSpec(kind="mask", name="lesion", labels=("lesion",))

CARD = DatasetCard(
    name="ham10000",
    title="HAM10000",
    heads=(DIAGNOSIS, LESION),
    channels=3,
    grouped_by="lesion",
    metadata=METADATA,
    kaggle="surajghuwalewala/ham1000-segmentation-and-classification",
    modality="dermatoscopic photograph",
    licence="CC BY-NC-SA 4.0",
    citation=(
        "Tschandl, Rosendahl, Kittler, Scientific Data 5 (2018) 180161; masks: Tschandl et al., Nature Medicine 26 "
        "(2020) 1229"
    ),
    limits=(
        "Mostly light skin, from two centers; about half of the diagnoses are by histology; patients are unknown, so "
        "that two lesions of one person can be in different parts."
    ),
)


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawers:
    """Every file of the archive, sorted by what its path says it is."""

    images: Mapping[str, PurePosixPath]
    """Image id → path."""
    masks: Mapping[str, PurePosixPath]
    stray: tuple[PurePosixPath, ...]


@dataclass(frozen=True)
class _About:
    """One row of the metadata table."""

    lesion: str | None
    dx: str
    """In capitals, as the classes are written."""
    age: float | None
    sex: str | None
    site: str | None


def listing(root: Path) -> Listing:
    """Images, masks and tables below ``root``. Raises DataError where there is neither table, or one is damaged."""
    beside = locate(root, CARD.name, (IMAGES, TRUTH, METADATA), EXPECTED) / METADATA
    return _listing(root, beside if beside.is_file() else None)


def listing_with(root: Path, metadata: Path) -> Listing:
    """The same, with the metadata table at a path of its own."""
    return _listing(root, metadata)


def _listing(root: Path, metadata: Path | None) -> Listing:
    base = locate(root, CARD.name, (IMAGES, TRUTH, METADATA), EXPECTED)
    below = PurePosixPath(base.relative_to(root).as_posix())
    drawers = _sort(files_below(base))
    labels, about, findings = _read_tables(base / TRUTH, metadata)
    rows = tuple(
        _row(image_id, below, drawers, labels[image_id], about.get(image_id))
        for image_id in sorted(drawers.images.keys() & labels.keys())
    )
    return Listing(rows=rows, findings=(*findings, *_oddities(drawers, labels, about, rows)))


def _sort(files: Iterable[PurePosixPath]) -> _Drawers:
    images, masks, stray = {}, {}, []
    for path in files:
        match path.parts:
            case ("images", _) if is_image(path) and path.stem not in images:
                images[path.stem] = path
            case ("masks", _) if is_image(path) and path.stem.endswith(MASK_SUFFIX):
                masks[path.stem.removesuffix(MASK_SUFFIX)] = path
            case (name,) if name in (TRUTH, METADATA):
                pass
            case _:
                stray.append(path)
    return _Drawers(images, masks, tuple(stray))


def _row(
    image_id: str, below: PurePosixPath, drawers: _Drawers, labels: Mapping[str, int], about: _About | None
) -> Row:
    mask = drawers.masks.get(image_id)
    return Row(
        image_id=image_id,
        path=(below / drawers.images[image_id]).as_posix(),
        labels={f"{DIAGNOSIS.name}.{name}": value for name, value in labels.items()},
        group=about.lesion if about else None,
        mask_path=(below / mask).as_posix() if mask is not None else None,
        age=about.age if about else None,
        sex=about.sex if about else None,
        site=about.site if about else None,
    )


def _oddities(
    drawers: _Drawers, labels: Mapping[str, Mapping[str, int]], about: Mapping[str, _About], rows: tuple[Row, ...]
) -> tuple[Finding, ...]:
    images = drawers.images.keys()
    unknown = [row.path for row in rows if not any(row.labels.values())]
    nameless = images & labels.keys() - about.keys() if about else ()
    return (
        *told("file_missing", "rows of the label table without an image", labels.keys() - images, "warning"),
        *told("row_missing", "images without a row in the label table, left out", images - labels.keys(), "warning"),
        *told("unknown_label", "images whose row names none of the dataset's classes", unknown),
        *told("metadata_missing", "images without a row in the metadata table: their lesion is unknown", nameless),
        *told("metadata_without_image", "rows of the metadata table alone", about.keys() - images - labels.keys()),
        *told("mask_without_image", "masks without an image", drawers.masks.keys() - images),
        *told("stray_file", "files that are no part of the dataset", drawers.stray),
    )


# -- the tables ----------------------------------------------------------------------------------


def _read_tables(
    truth: Path, metadata: Path | None
) -> tuple[dict[str, dict[str, int]], dict[str, _About], tuple[Finding, ...]]:
    """Labels and metadata by image id, and where the two contradict each other."""
    about_records = _records(metadata, ABOUT_COLUMNS) if metadata is not None else []
    about = {record["image_id"].strip(): _about(record) for record in about_records}
    named = {image_id: {label: int(label == of.dx) for label in CLASSES} for image_id, of in about.items()}
    if truth.is_file():
        truth_records = _records(truth, LABEL_COLUMNS)
    elif metadata is not None:
        return named, about, _repeated(metadata.name, about_records, "image_id")
    else:
        raise DataError(f"neither {TRUTH} nor {METADATA} is there", hint=f"expected {EXPECTED}")
    labels = {record["image"].strip(): _labels(record) for record in truth_records}
    apart = [image_id for image_id in labels.keys() & named.keys() if labels[image_id] != named[image_id]]
    findings = (
        *told("label_disagrees", f"images that {TRUTH} and the metadata table class apart", apart, "warning"),
        *_repeated(TRUTH, truth_records, "image"),
        *(_repeated(metadata.name, about_records, "image_id") if metadata else ()),
    )
    return labels, about, findings


def _repeated(table: str, records: list[dict[str, str]], key: str) -> tuple[Finding, ...]:
    twice = [image_id for image_id, rows in Counter(record[key] for record in records).items() if rows > 1]
    return told("row_repeated", f"images with more than one row in {table}; the last one counts", twice, "warning")


def _records(table: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            records = [] if missing else list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table.name} is no CSV file: {error}", hint="fetch it again") from error
    if missing:
        raise DataError(f"{table.name} lacks the columns {', '.join(missing)}", hint=f"expected {', '.join(columns)}")
    return records


def _labels(record: Mapping[str, str]) -> dict[str, int]:
    return {label: _flag(record, label) for label in CLASSES}


def _flag(record: Mapping[str, str], label: str) -> int:
    value = _number(record[label])
    if value not in (0.0, 1.0):
        raise DataError(
            f"{TRUTH} gives {record['image']} the value {record[label]!r} for {label}", hint="expected 0.0 or 1.0"
        )
    return int(value)


def _about(record: Mapping[str, str]) -> _About:
    age = _number(record["age"])
    if age is None and record["age"].strip():
        raise DataError(
            f"the metadata table gives {record['image_id']} the age {record['age']!r}",
            hint="expected years, or nothing",
        )
    site = record["localization"].strip()
    return _About(
        lesion=record["lesion_id"].strip() or None,
        dx=record["dx"].strip().upper(),
        age=age,
        sex=SEXES.get(record["sex"].strip()),
        site=site if site != "unknown" else None,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin, listing_with=listing_with)

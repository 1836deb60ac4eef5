"""Offline twins of declared datasets: generated images in the folders or the table that a declaration describes.

Radiographs where one channel is kept, skin lesions where three are. Each label has a look of its own, made of six
plain signs; what the label is called does not matter.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.random import Generator

from medflow.config.sections import DeclaredHead, FolderDataset, TableDataset, TableHead
from medflow.datasets._lesions import Lesion, photograph
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
    strength,
)
from medflow.datasets._spec import Planted
from medflow.datasets._synthesis import Pathology, save
from medflow.errors import ConfigError
from medflow.records import Generated

SIZE = 128
SPLIT_ORDER = ("train", "train", "val", "test", "train")
_BETWEEN = "\x1f"
"""Stands between the labels of one patient; in no label's name."""
_SIGNS = 6


@dataclass(frozen=True)
class Placed:
    """A shot, where it lies, and all that a table says of it."""

    shot: Shot
    person: str
    split: str
    image: str
    mask: str | None


def write_folder_twin(declared: FolderDataset, root: Path, request: Generated) -> Planted:
    """Write images, and masks, in the folders of ``declared``. Raises ConfigError where it cannot be done."""
    _refuse(declared, request)
    head = _first(declared.heads)
    placed = [
        Placed(
            shot, person, split,
            _path(declared.images, head, shot, person, split, ""),
            _path(declared.masks, head, shot, person, split, declared.mask_suffix) if declared.masks else None,
        )
        for shot, person, split in _people(head, request)
    ]  # fmt: skip
    _draw(root, declared, head, request.seed, placed)
    return Planted()


def write_table_twin(declared: TableDataset, root: Path, request: Generated) -> Planted:
    """Write images, masks and the table of ``declared``. Raises ConfigError where it cannot be done."""
    _refuse(declared, request)
    if Path(declared.csv).is_absolute():
        raise ConfigError(
            f"the table {declared.csv} is outside of the images' folder, and a twin is one folder",
            hint="put the table beside the images and name it by its relative path in declare.csv",
        )
    head = _first(declared.heads)
    masks = "masks" if declared.columns.mask else declared.masks
    placed = [
        Placed(
            shot, person, split,
            _path(declared.images, None, shot, person, split, ""),
            _path(masks, None, shot, person, split, declared.mask_suffix) if masks is not None else None,
        )
        for shot, person, split in _people(head, request)
    ]  # fmt: skip
    _draw(root, declared, head, request.seed, placed)
    _write_table(root, declared, placed, request.seed)
    return Planted()


def _refuse(declared: FolderDataset | TableDataset, request: Generated) -> None:
    if declared.group_pattern is not None:
        raise ConfigError(
            "names that group_pattern would find cannot be made up", hint="generate from a YAML without group_pattern"
        )
    if request.planted_faults:
        raise ConfigError(
            "faults can be planted in datasets with a module of their own only",
            hint="leave --planted-faults (source.planted_faults) out",
        )


# -- who is in it --------------------------------------------------------------------------------


def _first(heads: Iterable[DeclaredHead]) -> DeclaredHead | None:
    return next((head for head in heads if head.kind != "mask"), None)


def _people(head: DeclaredHead | None, request: Generated) -> Iterator[tuple[Shot, str, str]]:
    """Every shot with its patient's name and split; patients of one label go through the splits in turn."""
    labels = head.labels if head is not None else ()
    turns: dict[str, Iterator[int]] = {}
    homes: dict[int, str] = {}
    for shot in shots(request.seed, request.images, _shares(head), lambda mix, rng: _ill(mix, labels, rng)):
        patient = shot.patient
        if patient.number not in homes:
            turn = next(turns.setdefault(patient.label, count()))
            homes[patient.number] = SPLIT_ORDER[turn % len(SPLIT_ORDER)]
        yield shot, f"P{patient.number:04d}", homes[patient.number]


def _shares(head: DeclaredHead | None) -> dict[str, float]:
    """Labels of one patient → share. Independent ones also come in pairs, and not at all."""
    if head is None:
        return {"": 1.0}
    shares = dict.fromkeys(head.labels, 1.0)
    if head.kind == "independent":
        pairs = zip(head.labels, head.labels[1:], strict=False)
        shares |= {"": 1.0} | {_BETWEEN.join(pair): 0.3 for pair in pairs}
    return shares


def _present(shot: Shot) -> tuple[str, ...]:
    return tuple(filter(None, shot.patient.label.split(_BETWEEN)))


def _ill(mix: str, labels: tuple[str, ...], rng: Generator) -> Pathology:
    """Label 0 is healthy, 1 to 5 have one sign each, later ones two; labels that come together add up."""
    places = [labels.index(label) for label in mix.split(_BETWEEN) if label]
    signs = {sign for place in places for sign in (place % _SIGNS, place // _SIGNS)}
    opacities = [consolidation(rng) for _ in range(3)] if 1 in signs else []
    opacities += [nodule(rng) for _ in range(5)] if 2 in signs else []
    return Pathology(
        opacities=tuple(opacities),
        effusion=effusion(rng) if 3 in signs else (0.0, 0.0),
        haze=strength(rng, 0.3, 0.7) if 4 in signs else 0.0,
        heart=large_heart(rng) if 5 in signs else 1.0,
    )


# -- what lies where -----------------------------------------------------------------------------


def _path(folder: str, head: DeclaredHead | None, shot: Shot, person: str, split: str, suffix: str) -> str:
    says = {"{split}": split, "{group}": person, "*": "1"}
    if head is not None:
        says["{label}"] = shot.patient.label
    for place, word in says.items():
        folder = folder.replace(place, word)
    return (PurePosixPath(folder) / f"{person}_{shot.turn}{suffix}.png").as_posix()


def _draw(
    root: Path, declared: FolderDataset | TableDataset, head: DeclaredHead | None, seed: int, placed: list[Placed]
) -> None:
    labels = head.labels if head is not None else ()
    for path in {PurePosixPath(path).parent for one in placed for path in (one.image, one.mask) if path}:
        (root / path).mkdir(parents=True, exist_ok=True)

    def draw(one: Placed) -> None:
        image, mask = _radiograph(seed, one.shot) if declared.channels == 1 else _lesion(seed, one.shot, labels)
        save(root / one.image, image)
        if one.mask is not None:
            save(root / one.mask, mask * 255)

    for _ in on_all_cores(draw, placed):
        pass


def _radiograph(seed: int, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    seen = exposed(seed, shot, (SIZE, SIZE))
    return seen.image, seen.lungs


def _lesion(seed: int, shot: Shot, labels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A patient's lesion, its look drawn from the place of the first label among all."""
    present = _present(shot)
    place = (labels.index(present[0]) + 1) / len(labels) if present else 0.0
    lesion = Lesion.draw(
        stream(seed, Stream.PATIENT, shot.patient.number),
        ragged=place,
        dark=0.5 + 0.4 * place,
        mottled=abs(1.0 - 2.0 * place),
    )
    seen = photograph(lesion, (SIZE, SIZE), stream(seed, Stream.IMAGE, shot.index))
    return seen.image, seen.outline


# -- the table -----------------------------------------------------------------------------------


def _write_table(root: Path, declared: TableDataset, placed: list[Placed], seed: int) -> None:
    path = root / declared.csv
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_cells(declared, one, stream(seed, Stream.TEXT, one.shot.index)) for one in placed]
    with path.open("w", newline="", encoding=declared.encoding) as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter=declared.delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _cells(declared: TableDataset, one: Placed, rng: Generator) -> dict[str, object]:
    patient = one.shot.patient
    known: Mapping[str, object] = {
        "path": one.image, "group": one.person, "mask": one.mask, "split": one.split, "source": "generated",
        "age": patient.age, "sex": patient.sex, "view": one.shot.view, "site": patient.site,
        "text": f"{one.shot.view} radiograph.",
    }  # fmt: skip
    named = declared.columns.model_dump(exclude_none=True)
    cells = {column: known[name] for name, column in named.items()}
    heads = [head for head in declared.heads if head.kind != "mask"]
    for head in heads:
        cells |= _label_cells(head, _present(one.shot) if head is heads[0] else _chance(head, rng))
    return cells


def _chance(head: TableHead, rng: Generator) -> tuple[str, ...]:
    """Labels of a further head, which the pictures know nothing of."""
    if head.kind == "exclusive":
        return (str(rng.choice(head.labels)),)
    return tuple(label for label in head.labels if rng.random() < 0.3)


def _label_cells(head: TableHead, present: tuple[str, ...]) -> dict[str, object]:
    if head.column is None:
        return {label: int(label in present) for label in head.labels}
    none = head.none_label or ""
    return {head.column: (head.separator or "").join(present) or none}

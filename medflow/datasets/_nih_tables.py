"""The tables of ChestX-ray14 in every form in which they were published: entries, boxes, official lists.

Headers differ: ``Patient Gender`` or ``Patient Sex``, ``Image Index`` or ``Image_Index``, a comma at the end or none,
and two names with a comma inside (``OriginalImage[Width,Height]``), so that columns are known by name, never by
place. So do cells: patients are ``00027113`` or ``27113``, ages ``027Y``, ``040Y``, ``57``, ``10M`` or ``3D``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medflow.config.sections import TableHead
from medflow.datasets import _cells
from medflow.datasets._layout import told
from medflow.datasets._tables import Table, read_table
from medflow.errors import DataError
from medflow.records import Finding

LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NOTHING = "No Finding"
HEAD = TableHead(kind="independent", name="findings", labels=LABELS, column="", separator="|", none_label=NOTHING)
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
BOXES = "BBox_List_2017.csv"
LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
"""Official list → role. ``split`` takes val out of train."""
ALIASES = {"Infiltrate": "Infiltration"}
"""Names in the list of boxes that differ from those of the entries."""


@dataclass(frozen=True)
class Entry:
    """One line of the entries, and what boxes and lists say of the same image."""

    labels: Mapping[str, int | None]
    patient: str | None
    """Eight digits, as in file names, where the table gives a number."""
    age: float | None
    """Years; impossible ones are kept for ``validate``."""
    sex: str | None
    view: str | None
    split: str | None
    boxes: str | None


@dataclass(frozen=True)
class Tables:
    """``entries``: file name of the image → what is known of it."""

    entries: Mapping[str, Entry]
    findings: tuple[Finding, ...]


@dataclass
class _Notes:
    """What was odd, by kind."""

    repeated: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    ageless: list[str] = field(default_factory=list)
    patientless: list[str] = field(default_factory=list)


def read_tables(base: Path) -> Tables:
    """Entries, boxes and official lists in ``base``. Raises DataError where the entries lack a column."""
    name = next(name for name in TABLES if (base / name).is_file())
    table = read_table(base / name, "utf-8", ",")
    boxes, odd_boxes = _boxes(base / BOXES)
    splits, odd_splits = _splits(base)
    notes = _Notes()
    entries = _entries(table, boxes, splits, notes)
    return Tables(
        entries,
        (
            *_of_rows(name, table, notes),
            *_of_images(name, entries.keys(), boxes.keys(), splits.keys()),
            *told("box_unreadable", f"lines of {BOXES} that are no box of a label, left out", odd_boxes, "warning"),
            *told("split_conflict", "images in both official lists; they count as test", odd_splits, "warning"),
        ),
    )


def _of_rows(name: str, table: Table, notes: _Notes) -> Iterator[Finding]:
    unknown = "images with a finding that is none of the 14; their labels are unknown"
    ragged = [f"line {line}" for line in table.ragged]
    yield from told("row_repeated", f"more than one row of {name}; the first counts", notes.repeated, "warning")
    yield from told("row_ragged", f"lines of {name} with more cells than its header, left out", ragged, "warning")
    yield from told("unknown_label", unknown, notes.unknown, "warning")
    yield from told("age_unreadable", "ages that are no age; they count as unknown", notes.ageless, "warning")
    yield from told("patient_unknown", "rows without a patient", notes.patientless)


def _of_images(name: str, rows: Set[str], boxes: Set[str], listed: Set[str]) -> Iterator[Finding]:
    yield from told("box_without_row", f"images of {BOXES} that {name} lacks", boxes - rows)
    yield from told("split_without_row", f"images of the official lists that {name} lacks", listed - rows)
    yield from told("split_unknown", "images in neither official list", rows - listed if listed else ())


def _entries(table: Table, boxes: Mapping[str, str], splits: Mapping[str, str], notes: _Notes) -> dict[str, Entry]:
    places = {_plain(column): place for place, column in reversed(list(enumerate(table.columns)))}
    image, findings = _place(places, table, "Image Index"), _place(places, table, "Finding Labels")
    patient, age = _place(places, table, "Patient ID"), _place(places, table, "Patient Age")
    sex, view = _place(places, table, "Patient Gender", "Patient Sex"), _place(places, table, "View Position")
    labels: dict[str, dict[str, int | None]] = {}
    entries: dict[str, Entry] = {}
    for cells in table.rows:
        name, said = cells[image], cells[findings]
        if name in entries:
            notes.repeated.append(name)
            continue
        if said not in labels:
            labels[said] = _labels(said)
        years, readable = _cells.years(cells[age])
        person = _patient(cells[patient])
        entries[name] = Entry(
            labels[said], person, years, _cells.sex(cells[sex]), cells[view] or None, splits.get(name), boxes.get(name)
        )
        notes.unknown.extend([f"{name} ({said})"] if None in labels[said].values() else [])
        notes.ageless.extend([] if readable else [f"{name} ({cells[age]})"])
        notes.patientless.extend([] if person else [name])
    return entries


def _labels(cell: str) -> dict[str, int | None]:
    said = _cells.of_column(HEAD, cell, frozenset())
    return {f"{HEAD.name}.{label}": value for label, value in said.labels.items()}


def _patient(cell: str) -> str | None:
    """``1``, ``00000001`` and ``1.0`` are one patient."""
    number = re.fullmatch(r"0*(\d{1,8})(?:\.0+)?", cell)
    return f"{int(number[1]):08d}" if number else cell or None


def _plain(column: str) -> str:
    return re.sub(r"[^a-z#]", "", column.lower())


def _place(places: Mapping[str, int], table: Table, *names: str) -> int:
    """Where a column stands that has one of those names, however spelled. Raises DataError."""
    found = [places[_plain(name)] for name in names if _plain(name) in places]
    if not found:
        raise DataError(
            f"the table of entries has no column {' or '.join(names)}", hint=f"it has {', '.join(table.columns)}"
        )
    return found[0]


# -- boxes and lists -----------------------------------------------------------------------------


def _boxes(path: Path) -> tuple[dict[str, str], list[str]]:
    """File name → boxes as ``Row.boxes`` has them, and the lines that are none."""
    if not path.is_file():
        return {}, []
    table = read_table(path, "utf-8", ",")
    found: dict[str, list[dict[str, object]]] = {}
    odd = [f"line {line}" for line in table.ragged]
    for line, cells in zip(table.lines, table.rows, strict=True):
        box = _box(cells)
        if box is None:
            odd.append(f"line {line}")
        else:
            found.setdefault(cells[0], []).append(box)
    return {name: json.dumps(boxes) for name, boxes in found.items()}, odd


def _box(cells: tuple[str, ...]) -> dict[str, object] | None:
    """Image, label, x, y, width, height → a box in pixels of the original; None where that is not what it says."""
    try:
        x, y, width, height = (float(cell) for cell in cells[2:6])
    except ValueError:
        return None
    label = ALIASES.get(cells[1], cells[1])
    inside = 0 <= x < float("inf") and 0 <= y < float("inf") and 0 < width < float("inf") and 0 < height < float("inf")
    return {"label": label, "x": x, "y": y, "width": width, "height": height} if inside and label in LABELS else None


def _splits(base: Path) -> tuple[dict[str, str], set[str]]:
    """File name → role, and the names that are in both lists."""
    listed = {role: _names(base / name) for name, role in LISTS.items()}
    return {name: role for role in ("train", "test") for name in listed[role]}, listed["train"] & listed["test"]


def _names(path: Path) -> set[str]:
    """One file name a line; the archive's lists end without a newline."""
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return {PurePosixPath(line.strip()).name for line in lines if line.strip()}

"""``table``: a dataset that is a CSV of paths. It needs no code: a YAML with `declare: {kind: table}`.

Labels come from one column (one word, or several with a separator), or from one column of 0 and 1 a label.
The table may lie beside the images or anywhere else; images are only ever looked for below the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from medflow.config.sections import TableDataset, TableHead
from medflow.datasets import _cells, _declared
from medflow.datasets._cells import Said
from medflow.datasets._declared import Drawers
from medflow.datasets._files import Finder
from medflow.datasets._generic_twin import write_table_twin
from medflow.datasets._layout import is_image, told
from medflow.datasets._spec import DatasetSpec, Listing, Row
from medflow.datasets._tables import Table, read_table
from medflow.errors import DataError
from medflow.records import Finding


def spec(name: str, declared: TableDataset) -> DatasetSpec:
    """The declaration of dataset ``name`` as its YAML states it."""
    card = _declared.card(name, declared, declared.heads)
    beside = (Path(declared.csv),) if Path(declared.csv).is_absolute() else ()
    return DatasetSpec(
        card=card, listing=partial(listing, declared), twin=partial(write_table_twin, declared), beside=beside
    )


def listing(declared: TableDataset, root: Path) -> Listing:
    """Every image that the table names and that lies below ``root``.

    Raises DataError where the table or a column of it is missing, a cell can mean two files, or no image is there.
    """
    drawers = _declared.sort(root, declared)
    table = _read(declared, root)
    notes = _Notes()
    finder = Finder(drawers.images)
    rows: dict[PurePosixPath, Row] = {}
    reader = _Reader(declared, table, drawers, _mask_finder(declared, drawers), notes)
    for cells in table.rows:
        cell = cells[reader.path]
        path = finder.find(cell) if cell else None
        if path is None:
            (notes.missing if cell else notes.nameless).append(cell)
        elif (row := reader.row(path, cells)) is not None:
            before = rows.setdefault(path, row)
            if before is not row:
                (notes.repeated if before.labels == row.labels else notes.conflicting).append(path.as_posix())
    ordered, headers = _declared.with_headers(root, rows.values())
    return Listing(ordered, (*_findings(declared, table, drawers, ordered, notes), *headers))


def _read(declared: TableDataset, root: Path) -> Table:
    path = root / declared.csv  # an absolute path stands for itself
    if not path.is_file():
        raise DataError(
            f"the table {declared.csv} is not there", hint=f"declare.csv is a path below {root}, or an absolute one"
        )
    return read_table(path, declared.encoding, declared.delimiter)


def _mask_finder(declared: TableDataset, drawers: Drawers) -> Finder | None:
    if declared.columns.mask is None:
        return None
    return Finder([*drawers.images, *(path for path in drawers.stray if is_image(path))])


@dataclass
class _Notes:
    """What was odd, by kind: paths or cells."""

    missing: list[str] = field(default_factory=list)
    nameless: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    conflicting: list[str] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    """Head → ``path (words)``."""
    ignored: list[str] = field(default_factory=list)
    ageless: list[str] = field(default_factory=list)
    splitless: list[str] = field(default_factory=list)
    maskless: list[str] = field(default_factory=list)


@dataclass
class _Reader:
    """Turns a line of the table into a row. Columns are looked up once, so that a wrong one is told at once."""

    declared: TableDataset
    table: Table
    drawers: Drawers
    masks: Finder | None
    notes: _Notes

    def __post_init__(self) -> None:
        named = self.declared.columns.model_dump(exclude_none=True)
        self.places = {name: self.table.place(column) for name, column in named.items()}
        self.path = self.places["path"]
        self.heads = {head.name: _places_of(head, self.table) for head in self.declared.heads if head.kind != "mask"}
        self.ignore = frozenset(self.declared.ignore)

    def row(self, path: PurePosixPath, cells: tuple[str, ...]) -> Row | None:
        """None where the image's only label is one to be left out."""
        labels: dict[str, int | None] = {}
        for head in self.declared.heads:
            if head.kind == "mask":
                continue
            said = self._said(head, cells)
            if said.ignored:
                self.notes.ignored.append(path.as_posix())
                if head.kind == "exclusive":
                    return None
            if said.unknown:
                self.notes.unknown.setdefault(head.name, []).append(f"{path} ({', '.join(said.unknown)})")
            labels |= {f"{head.name}.{label}": value for label, value in said.labels.items()}
        return Row(
            image_id=path.as_posix(),
            path=path.as_posix(),
            labels=labels,
            group=self._cell("group", cells) or _declared.group_of(self.declared.group_pattern, path),
            mask_path=self._mask(path, cells),
            text=self._cell("text", cells),
            official_split=self._split(path, cells),
            source=self._cell("source", cells),
            age=self._age(path, cells),
            sex=_cells.sex(self._cell("sex", cells) or ""),
            view=self._cell("view", cells),
            site=self._cell("site", cells),
        )

    def _said(self, head: TableHead, cells: tuple[str, ...]) -> Said:
        places = self.heads[head.name]
        if head.column is not None:
            return _cells.of_column(head, cells[places[head.column]], self.ignore)
        return _cells.of_flags({label: cells[places[label]] for label in head.labels})

    def _cell(self, name: str, cells: tuple[str, ...]) -> str | None:
        place = self.places.get(name)
        return cells[place] or None if place is not None else None

    def _age(self, path: PurePosixPath, cells: tuple[str, ...]) -> float | None:
        cell = self._cell("age", cells) or ""
        age, readable = _cells.years(cell)
        if not readable:
            self.notes.ageless.append(f"{path} ({cell})")
        return age

    def _split(self, path: PurePosixPath, cells: tuple[str, ...]) -> str | None:
        cell = self._cell("split", cells)
        split = _declared.split_of(cell)
        if cell is not None and split is None:
            self.notes.splitless.append(f"{path} ({cell})")
        return split

    def _mask(self, path: PurePosixPath, cells: tuple[str, ...]) -> str | None:
        if self.masks is None:
            mask = self.drawers.mask_of(self.drawers.images[path])
        else:
            cell = self._cell("mask", cells)
            mask = self.masks.find(cell) if cell is not None else None
            if cell is not None and mask is None:
                self.notes.maskless.append(f"{path} ({cell})")
            if mask is not None:
                self.drawers.used.add(mask)
        return mask.as_posix() if mask is not None else None


def _places_of(head: TableHead, table: Table) -> dict[str, int]:
    columns = (head.column,) if head.column is not None else head.labels
    return {column: table.place(column) for column in columns}


def _findings(
    declared: TableDataset, table: Table, drawers: Drawers, rows: tuple[Row, ...], notes: _Notes
) -> Iterator[Finding]:
    name = PurePosixPath(declared.csv).name
    known = {PurePosixPath(row.path) for row in rows} | {PurePosixPath(path) for path in notes.ignored}
    groupless = [row.path for row in rows if row.group is None]
    told_groups = declared.columns.group is not None or declared.group_pattern is not None
    for head, words in notes.unknown.items():
        yield from told("unknown_label", f"{name}: {_unknown(declared, head)}", words, "error")
    yield from told("row_conflict", f"images with rows in {name} whose labels differ", notes.conflicting, "error")
    yield from told(
        "row_repeated", f"images with more than one row in {name}; the first counts", notes.repeated, "warning"
    )
    yield from told("file_missing", f"rows of {name} without an image", notes.missing, "warning")
    yield from told(
        "row_nameless", f"rows of {name} without a path", ["an empty cell"] * len(notes.nameless), "warning"
    )
    ragged = [f"line {line}" for line in table.ragged]
    yield from told("row_ragged", f"lines of {name} with more cells than its header, left out", ragged, "warning")
    yield from told("mask_missing_file", f"masks that {name} names and that are not there", notes.maskless, "warning")
    yield from told("unknown_split", f"{name}: a split other than train, val and test", notes.splitless, "warning")
    yield from told("age_unreadable", f"{name}: ages that are no age; they count as unknown", notes.ageless, "warning")
    if told_groups:
        message = "images whose group is not told"
        yield from told("group_unknown", message, groupless, "warning")
    yield from told("ignored_label", f"images with {', '.join(declared.ignore)}, ignored", notes.ignored)
    yield from told("row_missing", f"images without a row in {name}", drawers.images.keys() - known - drawers.used)
    yield from _declared.mask_findings(drawers)
    stray = set(drawers.stray) - drawers.used - {PurePosixPath(declared.csv)}
    yield from told("stray_file", "files that are no part of the dataset", stray)


def _unknown(declared: TableDataset, name: str) -> str:
    head = next(head for head in declared.heads if head.name == name)
    if head.column is None:
        return f"cells of {name} that are neither 1, 0, -1 nor empty"
    return f"words in {head.column} that `declare.heads` does not list; add them to `labels` or to `declare.ignore`"

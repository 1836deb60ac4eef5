"""Which columns of a table are paths, labels and patients: a declaration of kind `table`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medflow.config.sections import TableDataset
from medflow.datasets._declared import NEAR_DUPLICATES
from medflow.datasets._files import Finder
from medflow.datasets._tables import Table, read_table, sniff
from medflow.errors import DataError
from medflow.survey.columns import (
    STRONGEST,
    FlagColumns,
    LabelColumn,
    flag_columns,
    known_columns,
    label_column,
    name_score,
    plain,
)
from medflow.survey.files import Files, MaskPlace, files_of, mask_place
from medflow.survey.guess import MASK, Guess


def declare_table(root: Path, path: Path) -> Guess:
    """Raises DataError where no column names images, or none is a label and there are no masks."""
    files = files_of(root)
    encoding, delimiter = sniff(path)
    whole = read_table(path, encoding, delimiter)
    column = _path_column(whole, files.pictures, root, path)
    pictures = tuple(_named(whole, column, files.pictures))
    table = _present(whole, column, pictures)
    images = _common_folder(pictures)
    masks = _masks(table, files, images, column)
    named = known_columns(table, taken=(column, *([masks] if isinstance(masks, str) else [])))
    heads, notes = _label_heads(table, taken=(column, *named.values(), *([masks] if isinstance(masks, str) else [])))
    if not heads and masks is None:
        raise DataError(
            f"{path.name} has no column of labels: {', '.join(whole.columns)}",
            hint="a label column has a few words that come again and again; or give one column of 0 and 1 a label",
        )
    declared = TableDataset.model_validate(
        {
            "heads": [*heads, *([MASK] if masks is not None else [])],
            "csv": _below(path, root),
            "encoding": encoding,
            "delimiter": delimiter,
            "images": images,
            "masks": masks.folder if isinstance(masks, MaskPlace) else None,
            "mask_suffix": masks.suffix if isinstance(masks, MaskPlace) else "",
            "columns": {"path": column, **named, **({"mask": masks} if isinstance(masks, str) else {})},
            "grouped_by": _kind_of_group(named.get("group")),
        }
    )
    told = (*_file_notes(path, declared, whole), *notes, *_unused(whole, declared), *_beside(root, declared))
    return Guess(declared, pictures, told)


# -- the column of paths -------------------------------------------------------------------------


def _path_column(table: Table, pictures: Sequence[PurePosixPath], root: Path, path: Path) -> str:
    """The column that names most of the pictures."""
    known = {path.name for path in pictures} | {path.stem for path in pictures}
    hits = {
        column: len({name for cell in table.column(column) if (name := _file_name(cell)) in known})
        for column in table.columns
    }
    best = max(hits, key=lambda column: hits[column])
    if not hits[best]:
        cells = ", ".join(table.rows[0]) if table.rows else "no row at all"
        raise DataError(
            f"no column of {path.name} names an image of {root}: its first row is {cells}; an image is {pictures[0]}",
            hint="check that the table belongs to this folder; cells may be paths or file names, with or without .png",
        )
    return best


def _file_name(cell: str) -> str:
    return cell.replace("\\", "/").rpartition("/")[2]


def _named(table: Table, column: str, pictures: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Pictures that the table has a row of; where a cell can mean two files the listing will refuse it."""
    names = {_file_name(cell) for cell in table.column(column)}
    return [path for path in pictures if path.name in names or path.stem in names]


def _present(table: Table, column: str, pictures: Sequence[PurePosixPath]) -> Table:
    """The rows whose image is there: labels are learned from images, not from lines."""
    known = {path.name for path in pictures} | {path.stem for path in pictures}
    kept = [place for place, cell in enumerate(table.column(column)) if _file_name(cell) in known]
    return replace(
        table, rows=tuple(table.rows[place] for place in kept), lines=tuple(table.lines[place] for place in kept)
    )


def _common_folder(pictures: Sequence[PurePosixPath]) -> str:
    folders = [path.parent.parts for path in pictures]
    first, last = min(folders), max(folders)
    same = [one for one, other in zip(first, last, strict=False) if one == other]
    length = next(
        (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(same)
    )
    return "/".join(first[: min(length, len(first), len(last))])


def _below(path: Path, root: Path) -> str:
    """Relative where the table lies below the images' folder: the folder can then be moved or packed whole."""
    inside, base = path.resolve(), root.resolve()
    return inside.relative_to(base).as_posix() if inside.is_relative_to(base) else str(path.absolute())


# -- masks, labels, notes ------------------------------------------------------------------------


def _masks(table: Table, files: Files, images: str, path_column: str) -> MaskPlace | str | None:
    """The folder of masks, or the column that names them."""
    finder = Finder(files.masks)
    for column in table.columns:
        cells = [cell for cell in table.column(column) if cell]
        named = re.search(r"\bmask|\bseg", plain(column)) is not None
        if column != path_column and named and cells and all(finder.find(cell) is not None for cell in cells):
            return column
    return mask_place(files, images)


def _label_heads(table: Table, taken: Sequence[str]) -> tuple[list[dict[str, object]], list[str]]:
    """One head, from columns of flags or from a column of words; and what was decided by the data."""
    flags, words = flag_columns(table, taken), label_column(table, taken)
    if flags is not None and not (words is not None and name_score(words.column) == STRONGEST):
        return _flag_head(flags)
    return _word_head(words) if words is not None else ([], [])


def _flag_head(flags: FlagColumns) -> tuple[list[dict[str, object]], list[str]]:
    kind = "exclusive" if flags.exclusive else "independent"
    why = "every row has exactly one 1" if flags.exclusive else "some rows have no 1, or more than one"
    notes = [f"{len(flags.labels)} columns of 0 and 1: {kind}, because {why}"]
    if flags.empty:
        notes.append(f"columns without a single 1 are left out: {', '.join(flags.empty)}")
    return [{"kind": kind, "name": "label", "labels": flags.labels}], notes


def _word_head(words: LabelColumn) -> tuple[list[dict[str, object]], list[str]]:
    head: dict[str, object] = {"name": head_name(words.column), "labels": words.labels, "column": words.column}
    if words.separator is None:
        return [head | {"kind": "exclusive"}], [f"{words.column} holds one label a row: exclusive"]
    none = f"; {words.none_label!r} says that there is none" if words.none_label else ""
    note = f"{words.column} holds several labels a row, parted by {words.separator!r}: independent{none}"
    return [head | {"kind": "independent", "separator": words.separator, "none_label": words.none_label}], [note]


def head_name(column: str) -> str:
    """A column's name as an identifier: Finding Labels → finding_labels."""
    name = plain(column).replace(" ", "_")
    return name if name[:1].isalpha() else f"label_{name}".rstrip("_")


def _kind_of_group(column: str | None) -> str:
    if column is None:
        return NEAR_DUPLICATES
    return "lesion" if "lesion" in plain(column) else "patient"


def _file_notes(path: Path, declared: TableDataset, table: Table) -> list[str]:
    parted = {"\t": "tabs", ";": "semicolons", "|": "bars"}.get(declared.delimiter)
    notes = [f"{path.name} is parted by {parted}"] if parted else []
    if declared.encoding != "utf-8":
        notes.append(f"{path.name} is no UTF-8: it is read as {declared.encoding}; look at letters with accents")
    if table.ragged:
        lines = ", ".join(map(str, table.ragged[:5]))
        notes.append(f"{len(table.ragged)} lines of {path.name} have more cells than its header, such as line {lines}")
    return notes


def _unused(table: Table, declared: TableDataset) -> list[str]:
    used = {*declared.columns.model_dump(exclude_none=True).values()}
    for head in declared.heads:
        used |= {head.column} if head.column is not None else set(head.labels)
    unused = [column for column in table.columns if column not in used]
    return [f"columns of the table that are not used: {', '.join(unused)}"] if unused else []


def _beside(root: Path, declared: TableDataset) -> list[str]:
    """A folder of masks next to the one that was named."""
    if declared.masks is not None or declared.columns.mask is not None:
        return []
    found = [name for name in ("masks", "Masks", "segmentations") if (root.resolve().parent / name).is_dir()]
    return [f"{found[0]}/ lies beside this folder; --images {root.resolve().parent} would use it"] if found else []

"""CSV files as people send them: any of three encodings, any delimiter, quotes, CRLF, a byte order mark."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medflow.errors import DataError

Encoding = Literal["utf-8", "utf-16", "latin-1"]
DELIMITERS = (",", ";", "\t", "|")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_WORKBOOK = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b")
"""How .xlsx, .xls and .gz begin."""
_SNIFFED_ROWS = 200
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Table:
    """``rows`` are as long as ``columns``: cells without spaces around them, empty where a line was short."""

    columns: tuple[str, ...]
    """As the header says; a column without a name is called ``column N``, from 1."""
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    """Line of the file at which each row ends, from 1."""
    ragged: tuple[int, ...]
    """Lines with more cells than the header, left out: nobody knows which column they shifted."""

    def column(self, name: str) -> tuple[str, ...]:
        """Cells of one column. Raises DataError with the nearest name where there is none of that name."""
        place = self.place(name)
        return tuple(row[place] for row in self.rows)

    def place(self, name: str) -> int:
        if name not in self.columns:
            near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.4)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"the table has no column {name!r}", hint=f"{meant}its columns are {', '.join(self.columns)}"
            )
        return self.columns.index(name)


def read_table(path: Path, encoding: Encoding, delimiter: str) -> Table:
    """A whole CSV. Raises DataError where it cannot be read, has no header, or names a column twice."""
    cells = list(_cells(_text(path, encoding), delimiter, path))
    if not cells:
        raise DataError(f"{path.name} is empty", hint="expected a line of column names, then one line an image")
    columns = _header(cells[0][1], path)
    rows, lines, ragged = [], [], []
    for line, row in cells[1:]:
        if any(row[len(columns) :]):
            ragged.append(line)
            continue
        rows.append((*row[: len(columns)], *[""] * (len(columns) - len(row))))
        lines.append(line)
    return Table(columns, tuple(rows), tuple(lines), tuple(ragged))


def _text(path: Path, encoding: Encoding) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path.name} has {path.stat().st_size} bytes", hint="expected a table of at most 1 GiB")
        # A byte order mark is no part of the first column's name.
        return path.read_bytes().decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except OSError as error:
        raise DataError(f"the table {path} cannot be read: {error.strerror}", hint="check declare.csv") from error
    except UnicodeError as error:
        raise DataError(
            f"{path.name} is not in {encoding}: {error}", hint="set declare.encoding to utf-8, utf-16 or latin-1"
        ) from error


def _cells(text: str, delimiter: str, path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every line that holds something."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [
            (reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise DataError(
            f"{path.name} line {reader.line_num} is no CSV: {error}", hint="save the table again as CSV in UTF-8"
        ) from error


def _header(cells: Sequence[str], path: Path) -> tuple[str, ...]:
    last = max(place for place, cell in enumerate(cells) if cell)
    columns = tuple(cell or f"column {place + 1}" for place, cell in enumerate(cells[: last + 1]))
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise DataError(f"{path.name} has two columns called {twice[0]!r}", hint="give every column its own name")
    return columns


# -- finding out ---------------------------------------------------------------------------------


def sniff(path: Path) -> tuple[Encoding, str]:
    """Encoding and delimiter of a CSV: the delimiter under which most lines have as many cells as the header.

    Raises DataError where the file cannot be read or holds nothing.
    """
    encoding = _encoding(path)
    text = _text(path, encoding)
    agreeing: Mapping[str, tuple[int, int]] = {delimiter: _agreement(text, delimiter, path) for delimiter in DELIMITERS}
    return encoding, max(DELIMITERS, key=lambda delimiter: agreeing[delimiter])


def _encoding(path: Path) -> Encoding:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the table {path} cannot be read: {error.strerror}", hint="check the path") from error
    if not data.strip():
        raise DataError(f"{path.name} is empty", hint="expected a line of column names, then one line an image")
    if data.startswith(_WORKBOOK):
        raise DataError(f"{path.name} is a workbook or another archive", hint="save its sheet as CSV in UTF-8")
    if data.startswith(_UTF16):
        return "utf-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _agreement(text: str, delimiter: str, path: Path) -> tuple[int, int]:
    """(lines with as many cells as the header, where that is two or more; columns)."""
    head = "".join(text.splitlines(keepends=True)[:_SNIFFED_ROWS])
    try:
        counts = [len(cells) for _, cells in _cells(head, delimiter, path)]
    except DataError:
        return (0, 0)
    columns = counts[0] if counts else 0
    return (sum(count == columns for count in counts), columns) if columns > 1 else (0, columns)

"""Results go to standard output, everything else to standard error.

While a verb works, file descriptor 1 points at standard error, so that no library, subprocess or C code can
mix a line of its own into a result; what is emitted here goes to the real standard output.
Tables are drawn on a terminal and are plain aligned columns elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_stream: TextIO | None = None


@contextmanager
def results() -> Iterator[TextIO]:
    """Keep standard output for ``emit*``; whatever else is written to it goes to standard error."""
    global _stream
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stream, redirect_stdout(sys.stderr):
            _stream = stream
            yield stream
    finally:
        _stream = None
        os.dup2(kept, 1)
        os.close(kept)


def stream() -> TextIO:
    """Where results go."""
    return _stream or sys.stdout


def emit(text: str = "") -> None:
    """One line, or several, of the result."""
    print(text, file=stream(), flush=True)


def emit_json(value: Any) -> None:
    """The result as one JSON value."""
    emit(json_text(value))


def json_text(value: Any) -> str:
    """JSON; a number that is not finite becomes null, as JSON has no other word for it."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str)


def emit_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows under column titles; a column of numbers stands to the right."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[index]) for row in cells) for index in range(len(columns))]
    if stream().isatty():
        _draw(columns, cells, right)
    else:
        _align(columns, cells, right)


def _align(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = [max(len(row[index]) for row in [columns, *cells]) for index in range(len(columns))]
    for row in [columns, *cells]:
        parts = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        emit("  ".join(parts).rstrip())


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, to_right in zip(columns, right, strict=True):
        table.add_column(title, justify="right" if to_right else "left")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: a cell's own brackets are no markup
    Console(file=stream()).print(table)


def _is_number(cell: str) -> bool:
    return not cell or cell.removeprefix("-").replace(".", "", 1).replace(",", "").isdecimal()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

"""Excel sheets in and out, as far as datasets need them."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

_MIDNIGHT = (1980, 1, 1, 0, 0, 0)


def read_rows(path: Path, header: Sequence[str]) -> list[tuple[object, ...]] | None:
    """The named columns of the first sheet, one tuple a row; None where it is no workbook or lacks a column."""
    import openpyxl

    try:
        # From memory, so that no file stays open where the workbook is broken half-way.
        book = openpyxl.load_workbook(io.BytesIO(path.read_bytes()), data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
    except Exception:  # a damaged workbook fails in zipfile, zlib, the XML parser or openpyxl, with any of their errors
        return None
    titles = [str(title).strip().upper() for title in next(rows, ())]
    if any(name not in titles for name in header):
        return None
    places = [titles.index(name) for name in header]
    return [tuple(row[place] for place in places) for row in rows]


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One sheet, without the clock that a workbook normally carries: same rows, same bytes."""
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet")
    sheet.append(list(header))
    for row in rows:
        sheet.append(list(row))
    stamped = io.BytesIO()
    book.save(stamped)
    path.write_bytes(_without_clock(stamped))


def _without_clock(workbook: io.BytesIO) -> bytes:
    still = io.BytesIO()
    with zipfile.ZipFile(workbook) as source, zipfile.ZipFile(still, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "docProps/core.xml":
                data = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2000-01-01T00:00:00Z", data)
            target.writestr(zipfile.ZipInfo(name, date_time=_MIDNIGHT), data, zipfile.ZIP_DEFLATED)
    return still.getvalue()

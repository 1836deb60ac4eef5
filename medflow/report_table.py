"""Reports beside image files: a CSV with the columns ``image`` and ``text``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from medflow.errors import DataError
from medflow.text import MAX_CHARACTERS

COLUMNS = ("image", "text")


def read_reports(table: Path) -> dict[str, str]:
    """``image`` → ``text``. ``image`` is a path as it is given to `medflow predict`, or a file's name.

    Raises DataError where the file cannot be read, lacks a column, names an image twice, or has a report that the
    service would refuse for its length.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restval="")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table} lacks the column {missing[0]}", hint=f"expected {', '.join(COLUMNS)}")
            rows = [(row["image"], row["text"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}", hint="expected a CSV in UTF-8") from error
    reports: dict[str, str] = {}
    for image, text in rows:
        if image in reports:
            raise DataError(f"{table} names the image {image!r} twice", hint="give each image one report")
        if len(text) > MAX_CHARACTERS:
            message = f"{table}: the report of {image!r} has {len(text):,} characters, more than {MAX_CHARACTERS:,}"
            raise DataError(message, hint="give findings and impression alone")
        reports[image] = text
    return reports


def reports_of(paths: Sequence[Path], reports: Mapping[str, str]) -> tuple[str | None, ...]:
    """Each image's report, by its path as given, else by its file's name; None where the table has none.

    Raises DataError where the table names none of the images, since then it is another's.
    """
    found = tuple(reports.get(str(path), reports.get(PurePath(path).name)) for path in paths)
    if paths and all(report is None for report in found):
        raise DataError(
            "the table of reports names none of the images",
            hint=f"its column `image` holds paths as given here, or names such as {paths[0].name!r}",
        )
    return found

"""Rows as a dataset lists them, joined with what ingest measured: the manifest's table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import pyarrow

from medflow.datasets._spec import Row
from medflow.errors import DataError
from medflow.packing import Facts
from medflow.records import MANIFEST_COLUMNS, DatasetCard


def schema(card: DatasetCard) -> pyarrow.Schema:
    """``MANIFEST_COLUMNS`` in their order, then one nullable int8 column per label of the card."""
    fields = [(name, pyarrow.type_for_alias(kind)) for name, kind in MANIFEST_COLUMNS.items()]
    return pyarrow.schema(fields + [(name, pyarrow.int8()) for name in label_columns(card)])


def label_columns(card: DatasetCard) -> tuple[str, ...]:
    return tuple(name for head in card.heads for name in head.columns())


def ordered(rows: Sequence[Row], card: DatasetCard) -> tuple[Row, ...]:
    """Rows sorted by image id. Raises DataError where ids repeat, labels do not fit the card, or there is none."""
    if not rows:
        raise DataError(f"no image of {card.name} was found", hint="check that --source names the folder that holds it")
    rows = tuple(sorted(rows, key=lambda row: row.image_id))
    for before, row in pairwise(rows):
        if before.image_id == row.image_id:
            raise DataError(
                f"two files have the image id {row.image_id!r}: {before.path} and {row.path}",
                hint="ids must be unique; remove one, or let the dataset's listing tell them apart",
            )
    _refuse_other_labels(rows, set(label_columns(card)))
    return rows


def _refuse_other_labels(rows: Sequence[Row], expected: set[str]) -> None:
    for row in rows:
        if set(row.labels) != expected:
            odd = sorted(set(row.labels) ^ expected)
            raise DataError(
                f"the listing of {row.image_id!r} and its dataset's card differ in the labels {', '.join(odd)}",
                hint="list every label column of the card for every image: 1, 0 or None",
            )


def build(card: DatasetCard, rows: Sequence[Row], facts: Sequence[Facts]) -> pyarrow.Table:
    """One row an image, in the order of ``rows``; ``facts`` are of the same images in the same order.

    ``pixel_row`` counts the images without an error. ``group`` falls back to the image's own id, but where the
    card says that every image has one: it stays null there, and `split` asks for it.
    """
    columns: dict[str, list[object]] = {name: [] for name in schema(card).names}
    before = accumulate((item.error is None for item in facts), initial=0)
    for row, item, pixel_row in zip(rows, facts, before, strict=False):
        values = vars(row) | item.model_dump() | dict(row.labels)
        values["group"] = row.group or (None if card.expects_groups() else row.image_id)
        values["pixel_row"] = None if item.error else pixel_row
        for name, column in columns.items():
            column.append(values[name])
    return pyarrow.table(columns, schema=schema(card))

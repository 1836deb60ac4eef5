"""Datasets that a YAML declares: folders and tables, their twins, and what is odd about other people's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from medflow import datasets
from medflow.config.sections import Declaration
from medflow.datasets import Listing
from medflow.records import Generated
from medflow.twins import write_twin

LABEL = {"kind": "exclusive", "name": "label", "labels": ["Clear", "Bad Cold"]}
MASK = {"kind": "mask", "name": "mask", "labels": ["mask"]}
SIGNS = {"kind": "independent", "name": "signs", "labels": ["A", "B", "C"]}
CELL = {**SIGNS, "column": "Found", "separator": "|", "none_label": "No Finding"}

LAYOUTS = {
    "class folders": {"kind": "folder", "heads": [LABEL]},
    "parts above classes": {"kind": "folder", "heads": [LABEL], "images": "all/{split}/{label}"},
    "masks below classes": {
        "kind": "folder", "heads": [LABEL, MASK], "images": "{label}/images", "masks": "{label}/masks",
    },
    "masks in a parallel folder": {
        "kind": "folder", "heads": [LABEL, MASK], "images": "im/{label}", "masks": "seg/{label}",
    },
    "masks beside images": {
        "kind": "folder", "heads": [LABEL, MASK], "images": "{label}", "masks": "{label}", "mask_suffix": "_mask",
    },
    "masks only": {"kind": "folder", "heads": [MASK], "images": "images", "masks": "masks"},
    "folders of patients": {"kind": "folder", "heads": [LABEL], "images": "{label}/{group}", "grouped_by": "patient"},
    "colour": {"kind": "folder", "heads": [LABEL], "channels": 3},
    "one column": {
        "kind": "table", "heads": [{**LABEL, "column": "dx"}], "csv": "t.csv", "columns": {"path": "file"},
    },
    "one-hot": {"kind": "table", "heads": [LABEL], "csv": "a/t.csv", "images": "images", "columns": {"path": "file"}},
    "several labels a cell": {
        "kind": "table", "heads": [CELL, {**MASK}], "csv": "t.csv", "encoding": "utf-16", "delimiter": ";",
        "images": "images", "masks": "masks", "grouped_by": "patient",
        "columns": {"path": "file", "group": "who", "age": "age", "sex": "sex", "view": "view", "split": "part"},
    },
    "masks in a column": {
        "kind": "table", "heads": [{**LABEL, "column": "dx"}, MASK], "csv": "t.csv", "images": "images",
        "columns": {"path": "file", "mask": "outline", "text": "report", "site": "site", "source": "from"},
    },
}  # fmt: skip


def declared(values: dict) -> Declaration:
    return TypeAdapter(Declaration).validate_python(values)


def listed(values: dict, root: Path) -> Listing:
    return datasets.get("mine", declared(values)).listing(root)


def found(listing: Listing, check: str):
    return next((finding for finding in listing.findings if finding.check == check), None)


# -- every layout against its own twin -------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_twin_lists_as_it_was_declared(layout: str, tmp_path: Path) -> None:
    values = LAYOUTS[layout]
    write_twin("mine", tmp_path / "a", Generated(images=30), declared(values))
    listing = listed(values, tmp_path / "a")
    assert len(listing.rows) == 30 and listing.findings == ()
    card = datasets.get("mine", declared(values)).card
    columns = {column for head in card.heads for column in head.columns()}
    for row in listing.rows:
        assert set(row.labels) == columns
        assert (tmp_path / "a" / row.path).is_file()
        assert (row.mask_path is not None) == (card.mask_head() is not None)
        assert row.mask_path is None or (tmp_path / "a" / row.mask_path).is_file()
        assert (row.group is not None) == (card.grouped_by == "patient")
    assert {column for row in listing.rows for column, value in row.labels.items() if value} == columns
    split = "{split}" in values.get("images", "") or "split" in values.get("columns", {})
    assert {row.official_split for row in listing.rows} == ({"train", "val", "test"} if split else {None})

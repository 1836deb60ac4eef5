"""`medflow new`: what a folder holds is found out, told, written as settings, and read back as the same."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_declared import LAYOUTS, declared, make, write

from medflow import cli, datasets
from medflow.config._yaml import read_value
from medflow.config.own import declared_in
from medflow.config.reading import load, read
from medflow.config.sections import FolderDataset, TableDataset
from medflow.config.showing import as_yaml
from medflow.datasets import _declared
from medflow.errors import ConfigError, DataError
from medflow.records import Generated
from medflow.survey import survey
from medflow.survey.columns import none_label
from medflow.survey.folders import folders_of
from medflow.survey.writing import refuse_name, scalar
from medflow.survey.writing import write as write_yaml
from medflow.twins import write_twin

FOUND_OUT = sorted(set(LAYOUTS) - {"colour"})
"""Layouts whose twin, looked at without a word, must be understood as it was declared."""


def as_understood(values: dict) -> dict:
    """A declaration without what names alone cannot tell: heads' names and order of labels."""
    plain = declared(values).model_dump()
    plain["title"] = ""
    plain["heads"] = [
        {**head, "name": "", "labels": sorted(head["labels"])} for head in plain["heads"] if head["kind"] != "mask"
    ]
    return plain


@pytest.mark.parametrize("layout", FOUND_OUT)
def test_a_twin_is_understood_and_written_as_it_was_declared(layout: str, tmp_path: Path) -> None:
    values, root = LAYOUTS[layout], tmp_path / "twin"
    write_twin("mine", root, Generated(images=200 if "patients" in layout else 40), declared(values))
    table = root / values["csv"] if "csv" in values else None
    found = survey("mine", root, table)
    assert as_understood(found.declared.model_dump()) == as_understood(values)
    path = write_yaml("mine", found, root, tmp_path)
    config = load("mine", folder=tmp_path)
    assert path.read_text().startswith("# medflow run mine\n")
    assert config.declare == found.declared and config.source.path == str(root)
    assert [row.labels for row in found.listing.rows] == [
        row.labels for row in datasets.get(config.dataset, config.declare).listing(root).rows
    ]
    assert any("cannot be told apart" in note for note in found.notes) == (found.groups() is None)
    assert list(tmp_path.glob(".*")) == [], "nothing half-written is left"


def picture(path: Path, colour: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[..., 2] = 200
    path.write_bytes(cv2.imencode(".png", image if colour else image[..., 2])[1].tobytes())


def test_channels_are_those_of_most_images(tmp_path: Path) -> None:
    for place in range(6):
        picture(tmp_path / f"{'ab'[place % 2]}/{place}.png", colour=place > 1)
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    found = survey("mine", tmp_path, None)
    assert found.declared.channels == 3
    assert any("coloured are 4 of 6" in note for note in found.notes)
    assert any("1 of 7 images looked at cannot be read" in note for note in found.notes)


# -- folders -------------------------------------------------------------------------------------

FOLDERS = {
    "{label}": ["a/1.png", "b/2.png"],
    "{split}/{label}": ["train/a/1.png", "train/b/2.png", "Validation/a/3.png"],
    "{label}/{split}": ["a/train/1.png", "b/test/2.png"],
    "deep/down/{label}/images": ["deep/down/a/images/1.png", "deep/down/b/images/2.png"],
    "images_*/{label}": ["images_001/a/1.png", "images_002/b/2.png"],
    "": ["1.png", "2.png"],
    "a": ["a/1.png", "a/2.png"],
    "*/{label}": ["a{b}/x/1.png", "a{b}/y/2.png"],
    "{group}/{label}": [f"case{person}/{label}/1.png" for person in range(40) for label in "ab"],
}


@pytest.mark.parametrize("pattern", FOLDERS)
def test_levels_of_folders_are_told_apart(pattern: str) -> None:
    assert folders_of([PurePosixPath(path) for path in FOLDERS[pattern]]) == pattern


@pytest.mark.parametrize(
    ("paths", "masks", "suffix"),
    [
        (["a/images/1.png", "b/images/2.png", "a/masks/1.png"], "{label}/masks", ""),
        (["images/a/1.png", "images/b/2.png", "masks/a/1.png"], "masks/{label}", ""),
        (["a/1.png", "b/2.png", "lung_masks/a/1.jpg"], "lung_masks/{label}", ""),
        (["a/1.png", "b/2.png", "a/Masks/1_seg.png"], "{label}/Masks", "_seg"),
        (["a/1.png", "b/2.png", "a/1_mask.png"], "{label}", "_mask"),
        (["a/1.png", "b/2.png", "a/masks/7.png"], None, ""),
    ],
)
def test_masks_are_found_by_name(paths: list[str], masks: str | None, suffix: str, tmp_path: Path) -> None:
    make(tmp_path, *paths)
    found = survey("mine", tmp_path, None)
    assert isinstance(found.declared, FolderDataset)
    assert (found.declared.masks, found.declared.mask_suffix) == (masks, suffix)
    assert found.masks() == (masks is not None)


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        (["notes.txt", "scan.nii.gz"], "1 .nii.gz"),
        (["1.png", "2.png"], "class folders"),
        (["masks/1.png"], "folder of masks"),
        ([f"c{place}x{chr(97 + place % 26)}/{place}.png" for place in range(300)], "300 folders"),
    ],
)
def test_a_folder_that_says_nothing_is_refused(paths: list[str], word: str, tmp_path: Path) -> None:
    make(tmp_path, *paths)
    with pytest.raises(DataError, match=re.escape(word)):
        survey("mine", tmp_path, None)


# -- tables --------------------------------------------------------------------------------------


def table_of(tmp_path: Path, header: list[str], *rows: list[str], **how: str) -> TableDataset:
    make(tmp_path, *(f"im/{row[0]}.png" for row in rows))
    table = write(tmp_path / "t.csv", [header, *rows], **how)
    found = survey("mine", tmp_path, table).declared
    assert isinstance(found, TableDataset)
    return found


def test_one_hot_rows_that_sum_to_one_are_exclusive_and_others_independent(tmp_path: Path) -> None:
    exclusive = table_of(tmp_path / "a", ["id", "A", "B", "never"], ["x", "1.0", "0.0", "0"], ["y", "0.0", "1.0", "0"])
    independent = table_of(tmp_path / "b", ["id", "A", "B"], ["x", "1", "0"], ["y", "1", "1"])
    assert (exclusive.heads[0].kind, exclusive.heads[0].labels) == ("exclusive", ("A", "B"))
    assert independent.heads[0].kind == "independent"


def test_a_bar_anywhere_is_independent_and_a_word_for_none_is_none(tmp_path: Path) -> None:
    header = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position", "w"]
    head = table_of(
        tmp_path, header, ["x", "A|B", "1", "058Y", "M", "PA", "7.5"], ["y", "No Finding", "1", "60", "F", "AP", "8"],
    )  # fmt: skip
    assert head.heads[0].model_dump() == {
        "kind": "independent", "name": "finding_labels", "labels": ("A", "B"), "column": "Finding Labels",
        "separator": "|", "none_label": "No Finding",
    }  # fmt: skip
    assert head.columns.model_dump(exclude_none=True) == {
        "path": "Image Index", "group": "Patient ID", "age": "Patient Age", "sex": "Patient Gender",
        "view": "View Position",
    }  # fmt: skip
    assert (head.grouped_by, head.images) == ("patient", "im")


def test_a_hostile_table_is_understood_and_told(tmp_path: Path) -> None:
    make(tmp_path, "x.png", "y.png", "z.png")
    rows = [["Bild", "Lésion"], ["x", "sévère"], ["y", "légère"], ["z", "légère"]]
    table = write(tmp_path / "t.csv", rows, encoding="latin-1", delimiter=";", end="\r\n")
    with table.open("ab") as lines:
        lines.write(b"q;a;b;c\r\n")
    found = survey("mine", tmp_path, table)
    assert list(found.label_counts().values()) == [{"légère": 2, "sévère": 1}]
    said = " ".join(found.notes)
    assert "semicolons" in said and "latin-1" in said and "more cells than its header" in said


def test_a_table_without_these_images_or_labels_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "x.png", "y.png")
    with pytest.raises(DataError, match=r"no column of t\.csv names an image"):
        survey("mine", tmp_path, write(tmp_path / "t.csv", [["id", "dx"], ["q", "A"]]))
    with pytest.raises(DataError, match="no column of labels"):
        survey("mine", tmp_path, write(tmp_path / "t.csv", [["id", "age"], ["x", "7"], ["y", "8"]]))


def test_a_workbook_is_no_csv(tmp_path: Path) -> None:
    make(tmp_path, "x.png")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match="workbook"):
        survey("mine", tmp_path, tmp_path / "t.xlsx")


def test_names_that_cannot_be_printed_are_written_and_those_that_are_no_text_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", "bell\x07/1.png", "tab\t/2.png")
    found = survey("mine", tmp_path / "a", None)
    write_yaml("mine", found, tmp_path / "a", tmp_path)
    assert load("mine", folder=tmp_path).declare == found.declared
    make(tmp_path / "b", "plain/1.png", "\udcff/2.png")
    with pytest.raises(ConfigError, match="no text"):
        write_yaml("other", survey("other", tmp_path / "b", None), tmp_path / "b", tmp_path)
    assert not (tmp_path / "other.yaml").exists()


def test_none_is_a_word_that_stands_alone() -> None:
    assert none_label({"No Finding", "A|B", "A"}, "|") == "No Finding"
    assert none_label({"Normal|A", "Normal"}, "|") is None


# -- writing and the verb ------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_written_so_that_it_is_read_back(text: str) -> None:
    assert read_value(scalar(text)) == text


@pytest.mark.parametrize("text", ["1e3", "no", "null", "True", "~", "{label}", "- a", "a: b", "a #b", "0x1", "é", ""])
def test_text_that_yaml_would_take_for_something_else(text: str) -> None:
    assert read_value(scalar(text)) == text


@pytest.mark.parametrize("name", ["Mine", "my-data", "1st", "phantom", "folder", "models", "../x", ""])
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        refuse_name(name, tmp_path, force=False)


def test_the_verb_writes_once_lists_shows_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    values = declared(LAYOUTS["several labels a cell"])
    write_twin("mine", tmp_path / "twin", Generated(images=40), values)
    monkeypatch.chdir(tmp_path)
    words = ["new", "mine", "--images", "twin", "--csv", "twin/t.csv", "--json"]
    assert cli.run(words) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["images"] == told["masks"] == 40 and set(told["labels"]["found"]) == {"A", "B", "C"}
    assert cli.run(words) == 2
    assert "--force" in capfd.readouterr().err
    assert cli.run([*words, "--force"]) == 0
    capfd.readouterr()
    (tmp_path / "other.yaml").write_text("services: [web]\n")
    (tmp_path / "broken.yaml").write_text("dataset: x\ndeclare: {kind: tabel}\nmodels: [{kind: timm, name: a}]\n")
    assert cli.run(["datasets"]) == 0
    listed = capfd.readouterr()
    assert "mine" in listed.out and "not listed: broken.yaml line 2: declare.kind" in listed.err
    assert [config.dataset for config in declared_in(tmp_path)] == ["mine"]
    assert cli.run(["phantom", "mine", "--to", "again", "--images", "30"]) == 0
    (tmp_path / "shown.yaml").write_text(as_yaml(read("mine")))
    assert load("shown") == load("mine"), "what is shown runs again"
    capfd.readouterr()
    assert cli.run(["run", "mien"]) == 2
    hint = capfd.readouterr().err
    assert "did you mean 'mine'?" in hint and "medflow new" in hint


REAL = {
    "lung_disease/Lung Disease Dataset": (None, 173, 5, 0),
    "covid_radiography/COVID-19_Radiography_Dataset": (None, 80, 4, 3),
    "nih_chestxray14": ("nih_chestxray14/Data_Entry_2017.csv", 20, 14, 0),
    "ham10000/images": ("ham10000/GroundTruth.csv", 140, 7, 0),
    "ham10000": ("ham10000/HAM10000_metadata.csv", 140, 7, 140),
    "extras/lung_masks_named_like_image": (None, 12, 0, 12),
}


@pytest.mark.parametrize("folder", REAL)
def test_real_folders_are_understood(folder: str, samples: Path) -> None:
    csv, images, labels, masks = REAL[folder]
    found = survey("mine", samples / folder, samples / csv if csv else None)
    assert (len(found.listing.rows), found.masks()) == (images, masks)
    assert sum(len(counts) for counts in found.label_counts().values()) == labels
    assert (found.declared.grouped_by == _declared.NEAR_DUPLICATES) == (found.groups() is None)

"""The ChestX-ray14 archive's own ways: headers, spellings and lists; the whole table; a twin that can be learned."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medflow import datasets
from medflow.config.sections import IngestConfig, SplitConfig
from medflow.datasets._nih_tables import LABELS, NOTHING, Tables, read_tables
from medflow.datasets._patients import exposed, shots
from medflow.datasets.nih_chestxray14 import SIZE, _healthy, _suffering
from medflow.errors import DataError
from medflow.ingest import ingest
from medflow.records import Generated, Placement, Source
from medflow.split import split
from medflow.twins import write_twin

NAME = "nih_chestxray14"
SPEC = datasets.get(NAME)
PLAIN = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
SIZES = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"


def tables(folder: Path, header: str, *rows: str, **files: str) -> Tables:
    (folder / "Data_Entry_2017.csv").write_text("\n".join([header, *rows, ""]))
    for name, text in files.items():
        (
            folder / {"boxes": "BBox_List_2017.csv", "train": "train_val_list.txt", "test": "test_list.txt"}[name]
        ).write_text(text)
    return read_tables(folder)


def positive(found: Tables, name: str) -> set[str]:
    return {column.removeprefix("findings.") for column, value in found.entries[name].labels.items() if value}


# -- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (f"{PLAIN},{SIZES}", "a.png,Mass|Edema,3,00027113,027Y,F,PA,2790,2646,0.143,0.143"),
        (f"{PLAIN},{SIZES},", "a.png,Mass|Edema,3,27113,27,F,PA,2790,2646,0.143,0.143,"),
        (f"{PLAIN.replace('Gender', 'Sex')},{SIZES}", "a.png,Edema|Mass,3,27113,27.0,female,PA,2,2,.143,1"),
        (PLAIN.replace(" ", "_").replace("Follow-up", "Follow_Up"), "a.png,Mass|Edema,3,27113.0,027Y,F,PA"),
        (f"\ufeff{PLAIN}", "a.png, Mass | Edema ,3,27113,27,F,PA\r"),
        (",".join(reversed(PLAIN.split(","))), "PA,F,27,027113,3,Mass|Edema,a.png"),
    ],
)  # fmt: skip
def test_every_published_form_says_the_same(tmp_path: Path, header: str, row: str) -> None:
    found = tables(tmp_path, header, row)
    entry = found.entries["a.png"]
    assert positive(found, "a.png") == {"Mass", "Edema"} and set(entry.labels.values()) == {0, 1}
    assert (entry.patient, entry.age, entry.sex, entry.view) == ("00027113", 27.0, "F", "PA")
    assert found.findings == ()


@pytest.mark.parametrize(
    ("cell", "age", "findings"),
    [
        ("040Y", 40, ()), ("006M", 0.5, ()), ("002D", 2 / 365.25, ()), ("57", 57, ()), ("", None, ()),
        ("411", 411, ()), ("old", None, ("age_unreadable",)),
    ],
)  # fmt: skip
def test_ages(tmp_path: Path, cell: str, age: float | None, findings: tuple[str, ...]) -> None:
    """Impossible ones are kept: `validate` tells them."""
    found = tables(tmp_path, PLAIN, f"a.png,No Finding,0,1,{cell},M,AP")
    assert found.entries["a.png"].age == (pytest.approx(age) if age is not None else None)
    assert tuple(finding.check for finding in found.findings) == findings


def test_no_finding_is_all_nought_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    found = tables(tmp_path, PLAIN, "a.png,No Finding,0,1,57,M,PA", "b.png,Mass|Gout,0,2,57,M,PA", "c.png,,0,3,57,M,PA")
    assert set(found.entries["a.png"].labels.values()) == {0}
    assert set(found.entries["b.png"].labels.values()) == set(found.entries["c.png"].labels.values()) == {None}
    [finding] = [finding for finding in found.findings if finding.check == "unknown_label"]
    assert "b.png (Mass|Gout)" in finding.examples and finding.count == 2


def test_a_patient_is_known_by_number(tmp_path: Path) -> None:
    rows = [
        "a.png,Mass,0,00000012,57,M,PA",
        "b.png,Mass,1,12,57,M,PA",
        "c.png,Mass,1,X7,57,M,PA",
        "d.png,Mass,1,,57,M,PA",
    ]
    found = tables(tmp_path, PLAIN, *rows)
    assert [entry.patient for entry in found.entries.values()] == ["00000012", "00000012", "X7", None]
    assert [(finding.check, finding.examples) for finding in found.findings] == [("patient_unknown", ("d.png",))]


def test_boxes_are_kept_and_odd_ones_told(tmp_path: Path) -> None:
    found = tables(
        tmp_path, PLAIN, "a.png,Infiltration,0,1,57,M,PA", "b.png,Mass,0,1,57,M,PA",
        boxes="Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "a.png,Infiltrate,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661\n"
        "a.png,Mass,1,2,3,4,,\nb.png,Gout,1,2,3,4\nb.png,Mass,x,2,3,4\nb.png,Mass,1,2,-3,nan\nz.png,Mass,1,2,3,4\n",
    )  # fmt: skip
    first, second = json.loads(str(found.entries["a.png"].boxes))
    assert first == {
        "label": "Infiltration", "x": 225.084745762712, "y": 547.019216763771,
        "width": 86.7796610169491, "height": 79.1864406779661,
    }  # fmt: skip
    assert second["label"] == "Mass" and found.entries["b.png"].boxes is None
    told = {finding.check: finding for finding in found.findings}
    assert told["box_unreadable"].count == 3 and told["box_without_row"].examples == ("z.png",)


def test_the_lists_have_no_newline_at_the_end(tmp_path: Path) -> None:
    rows = [f"{name}.png,Mass,0,{name},57,M,PA" for name in "123"]
    found = tables(tmp_path, PLAIN, *rows, train="1.png\r\n3.png", test="2.png\n3.png\n9.png")
    assert [entry.split for entry in found.entries.values()] == ["train", "test", "test"]
    assert {finding.check: finding.examples for finding in found.findings} == {
        "split_conflict": ("3.png",), "split_without_row": ("9.png",),
    }  # fmt: skip


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Patient ID"):
        tables(tmp_path, PLAIN.replace("Patient ID,", ""), "a.png,Mass,0,57,M,PA")


# -- files ---------------------------------------------------------------------------------------


def test_the_table_is_the_truth(tmp_path: Path) -> None:
    write_twin(NAME, tmp_path / "twin", Generated(images=60))
    whole = SPEC.listing(tmp_path / "twin")
    gone, extra, again = tmp_path / "twin" / whole.rows[0].path, "images_012/images/x.png", "images_012/images/"
    gone.unlink()
    (tmp_path / "twin" / extra).touch()
    (tmp_path / "twin" / again / whole.rows[1].image_id).touch()
    found = SPEC.listing(tmp_path / "twin")
    assert found.rows == whole.rows[1:]
    assert {finding.check: (finding.count, finding.examples) for finding in found.findings} == {
        "file_missing": (1, (whole.rows[0].image_id,)),
        "row_missing": (1, ("x.png",)),
        "file_repeated": (1, (again + whole.rows[1].image_id,)),
    }  # fmt: skip


def test_images_lie_in_twelve_folders_some_of_them_rgba(tmp_path: Path) -> None:
    write_twin(NAME, tmp_path / "twin", Generated(images=160))
    rows = SPEC.listing(tmp_path / "twin").rows
    assert {Path(row.path).parts[0] for row in rows} == {f"images_{folder:03d}" for folder in range(1, 13)}
    assert {Image.open(tmp_path / "twin" / row.path).mode for row in rows} == {"L", "RGBA"}
    boxes = [box for row in rows if row.boxes for box in json.loads(row.boxes)]
    assert {"Infiltration", "Mass", "Nodule"} >= {box["label"] for box in boxes} and len(boxes) > 3
    assert max(Counter(row.group for row in rows).values()) > 1
    assert any(sum(value or 0 for value in row.labels.values()) > 1 for row in rows)


@pytest.mark.parametrize("finding", LABELS)
def test_findings_are_visible(finding: str) -> None:
    """The same exposure of the same patient, with a finding and without: enough pixels differ by more than noise."""
    seen = []
    for shot in shots(0, 24, {NOTHING: 1.0}, _healthy):
        ill = replace(shot, patient=_suffering(shot.patient, finding, np.random.default_rng(shot.index)))
        without, with_it = (exposed(0, one, (SIZE, SIZE)).image.astype(int) for one in (shot, ill))
        seen.append((np.abs(with_it - without) > 12).mean())
    assert np.median(seen) > 0.002, f"{np.median(seen):.4f}"


def test_a_split_by_the_official_lists_keeps_patients_whole(tmp_path: Path) -> None:
    source = Source(kind="generated", fingerprint="x", generated=Generated(images=160))
    manifest, _ = ingest(source, SPEC, (32,), IngestConfig(), tmp_path, workers=1)
    parts = split(manifest, Placement(), SplitConfig(official=True))
    assert set(parts.test.column("official_split")) == {"test"} and set(parts.train.column("official_split")) == {
        "train"
    }
    assert 0 < len(parts.val) < len(parts.train)
    assert set(parts.train.column("group")).isdisjoint(parts.test.column("group"))


# -- the real tables -----------------------------------------------------------------------------

COUNTS = {
    "Infiltration": 19894, "Effusion": 13317, "Atelectasis": 11559, "Nodule": 6331, "Mass": 5782, "Pneumothorax": 5302,
    "Consolidation": 4667, "Pleural_Thickening": 3385, "Cardiomegaly": 2776, "Emphysema": 2516, "Edema": 2303,
    "Fibrosis": 1686, "Pneumonia": 1431, "Hernia": 227,
}  # fmt: skip


def test_the_whole_table_is_read_without_an_image(samples: Path) -> None:
    folder = samples / "metadata_full" / NAME
    found = read_tables(folder)
    entries = found.entries.values()
    assert found.findings == () and len(entries) == 112_120
    assert len({entry.patient for entry in entries}) == 30_805
    assert Counter(entry.split for entry in entries) == {"train": 86_524, "test": 25_596}
    assert len({(entry.patient, entry.split) for entry in entries}) == 30_805, "no patient is in both lists"
    labels = Counter(
        column.removeprefix("findings.") for entry in entries for column, value in entry.labels.items() if value
    )
    assert labels == COUNTS and set(COUNTS) == set(LABELS)
    assert sum(len(json.loads(entry.boxes)) for entry in entries if entry.boxes) == 984
    assert all(entry.age is not None and 0 <= entry.age < 100 and entry.sex in ("F", "M") for entry in entries)


def test_the_early_release_is_read(samples: Path, tmp_path: Path) -> None:
    source = samples / "metadata_full" / NAME / "sample_labels.early_release.csv"
    shutil.copyfile(source, tmp_path / "Data_Entry_2017.csv")
    found = read_tables(tmp_path)
    assert len(found.entries) == 10_000 and found.findings == ()
    assert found.entries["00009232_004.png"].age == 40 and found.entries["00009232_004.png"].patient == "00009232"
    assert all(None not in entry.labels.values() for entry in found.entries.values())
    listing = SPEC.listing(tmp_path)
    [missing] = listing.findings
    assert listing.rows == () and (missing.check, missing.count, len(missing.examples)) == ("file_missing", 10_000, 5)


def test_real_images_are_found_with_their_boxes(samples: Path) -> None:
    listing = SPEC.listing(samples / NAME)
    assert listing.findings == () and len(listing.rows) == 20
    assert Counter(row.official_split for row in listing.rows) == {"train": 10, "test": 10}
    assert len({row.group for row in listing.rows}) == 17
    assert sum(len(json.loads(row.boxes)) for row in listing.rows if row.boxes) == 7
    named = {row.image_id: row for row in listing.rows}
    assert {column for column, value in named["00001054_002.png"].labels.items() if value} == {
        "findings.Atelectasis", "findings.Pneumonia",
    }  # fmt: skip


def test_real_images_are_read_rgba_among_them(samples: Path, tmp_path: Path) -> None:
    source = Source(kind="folder", fingerprint="x", uri=str(samples / NAME))
    manifest, pixels = ingest(source, SPEC, (32,), IngestConfig(), tmp_path, workers=1)
    assert Counter(manifest.column("mode").tolist()) == {"L": 19, "RGBA": 1}
    assert set(manifest.column("error").tolist()) == {None} and pixels.index.rows == 20

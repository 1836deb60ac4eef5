"""Files as they come: what public copies of the datasets really hold, each from a real file and from one made here."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medflow import checks, datasets
from medflow.config.sections import IngestConfig, SplitConfig, ValidateConfig
from medflow.datasets._workbook import write_rows
from medflow.datasets.covid_radiography import CLASSES, FOLDER, HEADER
from medflow.ingest import ingest
from medflow.preprocess import read, read_mask
from medflow.records import Generated, Manifest, PixelSpec, Placement, Source
from medflow.split import split
from medflow.twins import write_twin

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 283142\n"


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quirks") / "lungs"
    write_twin("lung_disease", root, Generated(images=30, seed=8))
    return root


def with_file(lungs: Path, to: Path, name: str, data: bytes) -> Path:
    """A copy of the twin with one more file in a class folder."""
    shutil.copytree(lungs, to)
    (to / "Lung Disease Dataset" / "train" / "Normal" / name).write_bytes(data)
    return to


def ingested(name: str, root: Path, work: Path) -> Manifest:
    source = Source(kind="folder", fingerprint="quirks", uri=str(root))
    return ingest(source, datasets.get(name), (32,), IngestConfig(), work, workers=1)[0]


def png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def oddity(samples: Path, folder: str, name: str) -> bytes:
    return (samples / "extras" / "oddities" / folder / name).read_bytes()


# -- files that are not what they are called -----------------------------------------------------


def check_rgba_named_jpg(lungs: Path, tmp_path: Path, data: bytes) -> None:
    root = with_file(lungs, tmp_path / "data", "a.jpg", data)
    rows = {row["image_id"]: row for row in ingested("lung_disease", root, tmp_path / "work").table.to_pylist()}
    row = rows["train/Normal/a.jpg"]
    assert (row["mode"], row["error"]) == ("RGBA", None) and row["pixel_row"] is not None
    shown = np.asarray(Image.open(BytesIO(data)).convert("RGB").convert("L"), dtype=float)
    assert abs(row["mean"] - shown.mean()) < 1  # alpha is ignored


def test_a_png_with_alpha_named_jpg_is_an_image(lungs: Path, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    image = Image.merge("RGBA", [*[Image.fromarray(gray)] * 3, Image.new("L", (50, 40), 30)])
    check_rgba_named_jpg(lungs, tmp_path, png(image))


def test_a_real_png_with_alpha_named_jpg_is_an_image(lungs: Path, tmp_path: Path, samples: Path) -> None:
    check_rgba_named_jpg(lungs, tmp_path, oddity(samples, "png_bytes_named_jpg", "COVID19_141.jpg"))


def check_pointer(lungs: Path, tmp_path: Path, data: bytes) -> None:
    root = with_file(lungs, tmp_path / "data", "ISIC_0027385.jpg", data)
    manifest = ingested("lung_disease", root, tmp_path / "work")
    checked = checks.check(manifest, ValidateConfig())
    [finding] = [item for item in checked.findings.findings if item.check == "unreadable"]
    assert (finding.severity, finding.count) == ("warning", 1) and "ISIC_0027385.jpg" in finding.examples[0]
    assert set(manifest.column("image_id")) - set(checked.kept.column("image_id")) == {"train/Normal/ISIC_0027385.jpg"}


def test_a_git_lfs_pointer_is_left_out_and_counted(lungs: Path, tmp_path: Path) -> None:
    check_pointer(lungs, tmp_path, POINTER)


def test_a_real_git_lfs_pointer_is_left_out_and_counted(lungs: Path, tmp_path: Path, samples: Path) -> None:
    check_pointer(lungs, tmp_path, oddity(samples, "git_lfs_pointer_named_jpg", "ISIC_0027385.jpg"))


@pytest.mark.parametrize("name", [".DS_Store", "file.md"])
def test_real_stray_files_in_a_class_folder_are_told(lungs: Path, tmp_path: Path, samples: Path, name: str) -> None:
    root = with_file(lungs, tmp_path / "data", name, oddity(samples, "stray_files_in_class_folder", name))
    listing = datasets.get("lung_disease").listing(root)
    assert len(listing.rows) == 30
    [finding] = listing.findings
    assert (finding.check, finding.examples) == ("stray_file", (f"train/Normal/{name}",))


# -- masks ---------------------------------------------------------------------------------------


def test_a_third_value_in_a_mask_is_not_set(tmp_path: Path) -> None:
    values = np.zeros((40, 60), dtype=np.uint8)
    values[:, 20:40], values[:, 40:] = 127, 255
    mask = read_mask(png(Image.fromarray(values)), PixelSpec(height=40, width=60, channels=1))
    assert (mask == (values == 255)).all()


def test_real_masks_named_like_their_image_are_read_whatever_their_suffix(samples: Path) -> None:
    folder = samples / "extras" / "lung_masks_named_like_image"
    paths = sorted((folder / "masks").iterdir())
    named_jpeg = [path for path in paths if path.suffix != ".png"]
    assert len(paths) == 12 and len(named_jpeg) >= 5
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in named_jpeg)
    marked = 0
    for path in paths:
        raw = np.asarray(Image.open(path))
        width, height = Image.open(folder / "images" / path.name).size
        mask = read_mask(path.read_bytes(), PixelSpec(height=height, width=width, channels=1))
        assert (mask == (raw == 255)).all() and 0.2 < mask.mean() < 0.7
        marked += 127 in raw
    assert marked == 3


# -- radiographs ---------------------------------------------------------------------------------


def test_real_outlier_radiographs_are_kept_and_measured(samples: Path, tmp_path: Path) -> None:
    """Dark, padded and inverted, but neither broken nor blank: that is for a reader to judge."""
    images = tmp_path / "data" / "COVID" / "images"
    shutil.copytree(samples / "extras" / "oddities" / "outlier_radiographs", images)
    manifest = ingested("covid_radiography", tmp_path / "data", tmp_path / "work")
    assert len(manifest) == 8 and not any(manifest.column("error"))
    mean, std = manifest.column("mean"), manifest.column("std")
    assert mean.min() < 30 and mean.max() > 200 and std.min() > ValidateConfig().blank_std
    for row in manifest.table.to_pylist():
        gray = np.asarray(read((tmp_path / "data" / row["path"]).read_bytes(), 1))
        assert abs(row["mean"] - gray.mean()) < 0.01


def test_real_covid_images_and_masks_differ_in_size_and_mode(samples: Path, tmp_path: Path) -> None:
    manifest = ingested("covid_radiography", samples / "covid_radiography", tmp_path)
    rows = {row["image_id"]: row for row in manifest.table.to_pylist()}
    assert rows["Viral Pneumonia/Viral Pneumonia-205.png"]["mode"] == "RGB"
    assert {(row["width"], row["height"]) for row in rows.values()} == {(299, 299)}
    masked = [row for row in rows.values() if row["mask_path"]]
    assert len(masked) == 3 and {(row["mask_width"], row["mask_height"]) for row in masked} == {(256, 256)}
    assert all(0.1 < row["mask_fraction"] < 0.6 for row in masked)
    assert all(row["source"] for row in rows.values() if row["image_id"].startswith("Normal/"))  # NORMAL-1 in the sheet


def test_real_small_color_copies_lie_in_the_official_val(samples: Path, tmp_path: Path) -> None:
    manifest = ingested("chest_xray_pneumonia", samples / "chest_xray_pneumonia", tmp_path)
    rows = manifest.table.to_pylist()
    val = {(row["mode"], row["width"], row["height"]) for row in rows if row["official_split"] == "val"}
    assert val == {("RGB", 224, 224)}
    others = [row for row in rows if row["official_split"] != "val"]
    assert Counter(row["mode"] for row in others) == {"L": 70, "RGB": 11}
    assert len({(row["width"], row["height"]) for row in others}) > 70


def test_files_that_name_no_patient_are_groups_of_their_own(tmp_path: Path) -> None:
    write_twin("chest_xray_pneumonia", tmp_path / "data", Generated(images=60))
    folder = tmp_path / "data" / "chest_xray" / "train" / "NORMAL"
    for number, path in enumerate(sorted(folder.glob("*.jpeg"))[:3]):
        path.rename(folder / f"scan {number}.jpeg")
    manifest = ingested("chest_xray_pneumonia", tmp_path / "data", tmp_path / "work")
    [finding] = [item for item in manifest.findings if item.check == "patient_unknown"]
    assert finding.count == 3 and not manifest.group_unknown().any()
    split(manifest, Placement(), SplitConfig())


# -- the full tables -----------------------------------------------------------------------------


def test_the_full_covid_tables_index_without_an_image(samples: Path, tmp_path: Path) -> None:
    tables = samples / "metadata_full" / "covid_radiography"
    with (tables / "metadata_all_classes.csv").open(newline="") as lines:
        records = [tuple(record[name] for name in HEADER) for record in csv.DictReader(lines)]
    of_class = {label: [row for row in records if row[0].lower().startswith(label.lower())] for label in CLASSES}
    for label, rows in of_class.items():
        write_rows(tmp_path / f"{label}.metadata.xlsx", HEADER, rows)
        (tmp_path / label / "images").mkdir(parents=True)
        if label != "Viral Pneumonia":  # an empty file for each image of the other three
            for row in rows:
                (tmp_path / label / "images" / f"{row[0].replace('NORMAL', 'Normal')}.png").touch()
    listing = datasets.get("covid_radiography").listing(tmp_path)
    labels = Counter(row.image_id.partition("/")[0] for row in listing.rows)
    assert labels == {"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192}
    assert all(row.source for row in listing.rows)
    [finding] = listing.findings
    assert (finding.check, finding.count, len(finding.examples)) == ("metadata_without_image", 1345, 5)


def test_pictures_known_to_be_one_are_one_group(tmp_path: Path) -> None:
    """As COVID-2807 to COVID-2813 of the archive: the same bytes seven times, in one part of any split."""
    write_twin("covid_radiography", tmp_path / "data", Generated(images=60))
    folder = tmp_path / "data" / FOLDER / "COVID" / "images"
    for number in range(2807, 2814):
        shutil.copy(folder / "COVID-1.png", folder / f"COVID-{number}.png")
    parts = split(ingested("covid_radiography", tmp_path / "data", tmp_path / "work"), Placement(), SplitConfig())
    homes = [
        {path for path in part.column("image_id") if int(path.rpartition("-")[2][:-4]) in (1, *range(2807, 2814))}
        for part in (parts.train, parts.val, parts.test)
    ]
    assert sum({f"COVID/COVID-{number}.png" for number in range(2807, 2814)} <= home for home in homes) == 1


def test_real_known_duplicates_are_names_of_the_table(samples: Path) -> None:
    tables = samples / "metadata_full" / "covid_radiography"
    with (tables / "metadata_all_classes.csv").open(newline="") as lines:
        names = {record["FILE NAME"] for record in csv.DictReader(lines)}
    with (tables / "known_duplicates.csv").open(newline="") as lines:
        groups = [record["list"].strip("[]").replace("'", "").split(", ") for record in csv.DictReader(lines)]
    assert max(map(len, groups)) == 7
    assert {name.replace("Normal", "NORMAL") for group in groups for name in group} <= names

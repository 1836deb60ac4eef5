"""The skin lesion archive's own ways: two tables, lesions as groups, masks with a palette, sizes that differ."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medflow import checks, datasets, fetch
from medflow.config.sections import IngestConfig, SourceConfig, SplitConfig, ValidateConfig
from medflow.datasets import Row
from medflow.datasets.ham10000 import ABOUT_COLUMNS, CLASSES, METADATA, TRUTH
from medflow.errors import ConfigError, DataError, SourceError, SplitError
from medflow.ingest import ingest
from medflow.pixels import open_store
from medflow.preprocess import read_mask
from medflow.records import Generated, Manifest, PixelSpec, Placement, Source
from medflow.split import split
from medflow.twins import write_twin

SPEC = datasets.get("ham10000")
GRAY = PixelSpec(height=45, width=60, channels=1)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The archive's folder, and the metadata table beside it."""
    folder = tmp_path_factory.mktemp("ham")
    write_twin("ham10000", folder / "archive", Generated(images=100, seed=4), metadata=folder / METADATA)
    return folder / "archive", folder / METADATA


def label_of(row: Row) -> str | None:
    return next((name.partition(".")[2] for name, value in row.labels.items() if value), None)


def write(table: Path, header: tuple[str, ...], *rows: tuple[str, ...]) -> Path:
    table.write_text("\n".join(",".join(row) for row in (header, *rows)))
    return table


def truth(image: str, label: str) -> tuple[str, ...]:
    return (image, *(f"{float(name == label):.1f}" for name in CLASSES))


def resolved(root: Path, metadata: Path | None = None) -> Source:
    settings = SourceConfig(kind="folder", path=str(root), metadata=str(metadata) if metadata else None)
    return fetch.resolve(settings, SPEC.card)


def ingested(source: Source, work: Path) -> Manifest:
    return ingest(source, SPEC, (24,), IngestConfig(), work, workers=1)[0]


# -- tables --------------------------------------------------------------------------------------


def test_either_table_gives_the_same_labels(twin: tuple[Path, Path], tmp_path: Path) -> None:
    archive, metadata = twin
    by_truth = SPEC.listing_with(archive, metadata)
    shutil.copytree(archive, tmp_path / "without")
    (tmp_path / "without" / TRUTH).unlink()
    assert SPEC.listing_with(tmp_path / "without", metadata) == by_truth
    shutil.copy(metadata, tmp_path / "without" / METADATA)
    assert SPEC.listing(tmp_path / "without") == by_truth
    assert by_truth.findings == ()


def test_without_a_table_there_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="neither") as caught:
        SPEC.listing(tmp_path)
    assert METADATA in caught.value.hint


def test_age_sex_site_and_lesion_are_kept_and_unknown_is_null(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"ISIC_{number}.jpg").touch()
    write(
        tmp_path / METADATA, (*ABOUT_COLUMNS, "dx_type"),
        ("HAM_1", "ISIC_0", "bkl", "80.0", "male", "scalp", "histo"),
        ("HAM_1", "ISIC_1", "bkl", "", "unknown", "unknown", "histo"),
        ("HAM_2", "ISIC_2", "vasc", "0.0", "female", "back", "consensus"),
    )  # fmt: skip
    rows = SPEC.listing(tmp_path).rows
    assert [(row.group, label_of(row), row.age, row.sex, row.site) for row in rows] == [
        ("HAM_1", "BKL", 80.0, "M", "scalp"),
        ("HAM_1", "BKL", None, None, None),
        ("HAM_2", "VASC", 0.0, "F", "back"),
    ]


def test_what_is_odd_in_the_tables_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c", "unlisted"):
        (tmp_path / "images" / f"{name}.jpg").touch()
    rows = [truth("a", "NV"), truth("b", "none"), truth("c", "MEL"), truth("c", "MEL"), truth("gone", "NV")]
    write(tmp_path / TRUTH, ("image", *CLASSES), *rows)
    about = [("HAM_1", "a", "mel", "", "", ""), ("HAM_2", "c", "mel", "", "", ""), ("HAM_3", "other", "nv", "", "", "")]
    write(tmp_path / METADATA, ABOUT_COLUMNS, *about)
    listing = SPEC.listing(tmp_path)
    assert {row.image_id: label_of(row) for row in listing.rows} == {"a": "NV", "b": None, "c": "MEL"}
    assert {(item.check, item.count, item.examples) for item in listing.findings} == {
        ("label_disagrees", 1, ("a",)),
        ("row_repeated", 1, ("c",)),
        ("file_missing", 1, ("gone",)),
        ("row_missing", 1, ("unlisted",)),
        ("unknown_label", 1, ("images/b.jpg",)),
        ("metadata_missing", 1, ("b",)),
        ("metadata_without_image", 1, ("other",)),
    }


@pytest.mark.parametrize(
    ("table", "content", "words"),
    [
        (TRUTH, "image,MEL\na,1.0\n", "lacks the columns NV"),
        (TRUTH, ",".join(("image", *CLASSES)) + "\na,yes" + ",0" * 6, "gives a the value 'yes' for MEL"),
        (METADATA, "lesion_id,image_id\nHAM_1,a\n", "lacks the columns dx"),
        (METADATA, ",".join(ABOUT_COLUMNS) + "\nHAM_1,a,nv,old,male,back\n", "the age 'old'"),
        (METADATA, b"\xff\xfe\x00", "no CSV"),
    ],
)
def test_a_damaged_table_is_refused(table: str, content: str | bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / table).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        SPEC.listing(tmp_path)


# -- the twin ------------------------------------------------------------------------------------


def test_the_twin_is_the_archive_and_the_table_lies_apart(twin: tuple[Path, Path], tmp_path: Path) -> None:
    archive, metadata = twin
    assert sorted(path.name for path in archive.iterdir()) == [TRUTH, "images", "masks"]
    assert {row.group for row in SPEC.listing(archive).rows} == {None}
    rows = SPEC.listing_with(archive, metadata).rows
    assert 1.1 < len(rows) / len({row.group for row in rows}) < 2
    assert {row.sex for row in rows} == {"F", "M", None} and None in {row.age for row in rows}
    assert {Image.open(archive / row.path).size for row in rows} == {(600, 450)}
    assert {Image.open(archive / row.path).mode for row in rows} == {"RGB"}
    modes = Counter(Image.open(archive / str(row.mask_path)).mode for row in rows)
    assert set(modes) == {"L", "P"} and modes["P"] < modes["L"]
    for name, kind in (("ham10000", metadata), ("phantom", tmp_path / "new.csv")):
        with pytest.raises(ConfigError, match="already exists" if kind == metadata else "no metadata file"):
            write_twin(name, tmp_path / "again", Generated(images=24), metadata=kind)


def test_masks_with_a_palette_lie_on_the_dark_spot_as_the_others_do(twin: tuple[Path, Path]) -> None:
    archive, _ = twin
    for row in SPEC.listing(archive).rows:
        gray = np.asarray(Image.open(archive / row.path).convert("L").resize((60, 45)), dtype=float)
        mask = read_mask((archive / str(row.mask_path)).read_bytes(), GRAY).astype(bool)
        assert gray[mask].mean() < gray[~mask].mean()


# -- groups --------------------------------------------------------------------------------------


def test_the_archive_alone_stops_and_asks_for_the_table(twin: tuple[Path, Path], tmp_path: Path) -> None:
    archive, metadata = twin
    manifest = ingested(resolved(archive), tmp_path / "a")
    with pytest.raises(SplitError, match="100 of 100 images have no group") as caught:
        split(manifest, Placement(), SplitConfig())
    assert "--metadata FILE" in caught.value.hint and METADATA in caught.value.hint
    allowed = split(manifest, Placement(), SplitConfig(allow_missing_groups=True))
    assert [item.check for item in allowed.test.findings] == ["group_unknown"]
    joined = ingested(resolved(archive, metadata), tmp_path / "b")
    parts = split(joined, Placement(), SplitConfig())
    assert parts.train.findings == () and parts.train.column("group")[0].startswith("HAM_")
    lesions = [set(part.column("group")) for part in (parts.train, parts.val, parts.test)]
    assert sum(map(len, lesions)) == len(set().union(*lesions)) > 50


def test_a_table_of_some_images_is_not_enough(twin: tuple[Path, Path], tmp_path: Path) -> None:
    archive, metadata = twin
    few = tmp_path / "few.csv"
    few.write_text("".join(metadata.read_text().splitlines(keepends=True)[:60]))
    manifest = ingested(resolved(archive, few), tmp_path / "work")
    with pytest.raises(SplitError, match="41 of 100 images have no group"):
        split(manifest, Placement(), SplitConfig())


def test_the_content_of_the_table_counts_and_its_place_does_not(twin: tuple[Path, Path], tmp_path: Path) -> None:
    archive, metadata = twin
    moved = tmp_path / "moved.csv"
    shutil.copy(metadata, moved)
    digests = [resolved(archive, path).digest() for path in (None, metadata, moved)]
    assert digests[1] == digests[2] != digests[0]
    moved.write_text(moved.read_text().replace("HAM_0000001", "HAM_9999999"))
    source = resolved(archive, moved)
    assert source.digest() not in digests
    moved.write_text("")
    with pytest.raises(SourceError, match="changed after the run began"):
        ingested(source, tmp_path / "work")
    with pytest.raises(SourceError, match="cannot be read"):
        resolved(archive, tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="takes no metadata file"):
        fetch.resolve(SourceConfig(kind="generated", metadata=str(metadata)), datasets.get("phantom").card)


def test_what_is_generated_in_a_run_has_its_table(tmp_path: Path) -> None:
    source = fetch.resolve(SourceConfig(kind="generated", images=24), SPEC.card)
    assert None not in ingested(source, tmp_path).column("group")


# -- real files ----------------------------------------------------------------------------------


def test_the_full_tables_index_without_an_image(samples: Path, tmp_path: Path) -> None:
    tables = samples / "metadata_full" / "ham10000"
    missing = SPEC.listing(tables)
    assert missing.rows == ()
    [finding] = missing.findings
    assert (finding.check, finding.severity, finding.count, len(finding.examples)) == (
        "file_missing",
        "warning",
        10015,
        5,
    )
    for table in (TRUTH, METADATA):
        shutil.copy(tables / table, tmp_path / table)
    (tmp_path / "images").mkdir()
    with (tables / TRUTH).open(newline="") as lines:
        for record in csv.DictReader(lines):
            (tmp_path / "images" / f"{record['image']}.jpg").touch()
    listing = SPEC.listing(tmp_path)
    assert listing.findings == () and len(listing.rows) == 10015
    assert len({row.group for row in listing.rows}) == 7470
    assert Counter(map(label_of, listing.rows)) == {
        "NV": 6705, "MEL": 1113, "BKL": 1099, "BCC": 514, "AKIEC": 327, "VASC": 142, "DF": 115,
    }  # fmt: skip
    assert sum(row.age is None for row in listing.rows) == sum(row.sex is None for row in listing.rows) == 57
    assert sum(row.site is None for row in listing.rows) == 234
    groups = {row.image_id: row.group for row in listing.rows}
    assert groups["ISIC_0024366"] == groups["ISIC_0029861"]


def test_real_samples_are_listed_with_their_lesions(samples: Path) -> None:
    listing = SPEC.listing(samples / "ham10000")
    assert listing.findings == () and Counter(map(label_of, listing.rows)) == dict.fromkeys(CLASSES, 20)
    assert all(row.mask_path for row in listing.rows)
    assert sum(count > 1 for count in Counter(row.group for row in listing.rows).values()) == 38


def test_real_samples_go_through(samples: Path, tmp_path: Path) -> None:
    manifest, pixels = ingest(resolved(samples / "ham10000"), SPEC, (64,), IngestConfig(), tmp_path, workers=1)
    assert not any(manifest.column("error")) and not any(manifest.column("mask_error"))
    sizes = Counter(zip(manifest.column("width"), manifest.column("height"), strict=True))
    assert sizes == {(600, 450): 28, (200, 150): 112} and set(manifest.column("mask_width")) == {600}
    checked = checks.check(manifest, ValidateConfig())
    found = {item.check: item for item in checked.findings.findings}
    assert found["duplicate"].examples == ("ISIC_0029861 (copy_of ISIC_0024366)",)
    assert "mask_mismatched" not in found  # of one shape, though not of one size
    store = open_store(pixels, 64)
    images, masks = store.images(manifest.pixel_rows()), store.masks(manifest.pixel_rows()).astype(bool)
    assert images.shape[-1] == 3
    darker = [image[~mask].mean() - image[mask].mean() for image, mask in zip(images, masks, strict=True)]
    image_id = manifest.column("image_id").astype(str)
    with_palette = (image_id >= "ISIC_0024316") & (image_id <= "ISIC_0024717")
    assert with_palette.sum() == 26
    for rows in (with_palette, ~with_palette):  # under the negative of a mask it would be brighter
        assert np.median(np.array(darker)[rows]) > 20
    split(checked.kept, Placement(), SplitConfig())


def test_real_palette_masks_are_the_negative_of_their_raw_index(samples: Path) -> None:
    masks = sorted((samples / "ham10000" / "masks").glob("*.png"))
    palette = [path for path in masks if Image.open(path).mode == "P"]
    assert len(palette) == 26 and {Image.open(path).mode for path in masks} == {"P", "L"}
    full = PixelSpec(height=450, width=600, channels=1)
    shares: dict[str, list[float]] = {"P": [], "L": []}
    for path in masks:
        image = Image.open(path)
        mask = read_mask(path.read_bytes(), full)
        shares[image.mode].append(float(mask.mean()))
        raw = np.asarray(image)
        assert ((raw == 0) == mask).all() if image.mode == "P" else ((raw > 127) == mask).all()
    assert abs(np.median(shares["P"]) - np.median(shares["L"])) < 0.2  # as large as the others, not their complement

"""The lung disease archive's own ways: official folders, names of every make, gray and color side by side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from PIL import Image

from medflow import datasets
from medflow.config.sections import IngestConfig, SplitConfig
from medflow.datasets.lung_disease import CLASSES, FOLDER, SPLITS
from medflow.ingest import ingest
from medflow.records import Generated, Placement, Source, Split
from medflow.split import split
from medflow.twins import write_twin

SPEC = datasets.get("lung_disease")


def test_names_of_every_make_are_images(tmp_path: Path) -> None:
    names = [
        "_21_3861426.jpeg",
        "test_0_9774.jpeg",
        "others (64).jpg",
        "1-s2.0-S01.x-fx1_lrg.JPG",
        "TB.1467.jpg",
        "a.png",
    ]
    folder = tmp_path / FOLDER / "test" / "Tuberculosis"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    listing = SPEC.listing(tmp_path)
    assert [row.image_id for row in listing.rows] == sorted(f"test/Tuberculosis/{name}" for name in names)
    assert listing.findings == ()


def test_one_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    for split_, label in (("train", "Normal"), ("test", "Normal"), ("train", "Tuberculosis")):
        (tmp_path / split_ / label).mkdir(parents=True)
        (tmp_path / split_ / label / "_1_1.jpeg").touch()
    assert len({row.image_id for row in SPEC.listing(tmp_path).rows}) == 3


def test_the_twin_has_what_the_archive_has(tmp_path: Path) -> None:
    write_twin("lung_disease", tmp_path / "twin", Generated(images=60))
    rows = SPEC.listing(tmp_path / "twin").rows
    homes = {(row.path.split("/")[1], row.path.split("/")[2]) for row in rows}
    assert homes == {(split_, label) for split_ in SPLITS for label in CLASSES}
    assert {Path(row.path).suffix for row in rows} == {".jpeg", ".jpg"}
    assert any("(" in row.path for row in rows) and any(Path(row.path).stem.count(".") for row in rows)
    images = [Image.open(tmp_path / "twin" / row.path) for row in rows]
    assert {image.mode for image in images} == {"L", "RGB"} and len({image.size for image in images}) > 30


def test_real_samples_take_the_official_split_on_request_and_a_new_one_otherwise(samples: Path, tmp_path: Path) -> None:
    source = Source(kind="folder", fingerprint="real", uri=str(samples / "lung_disease"))
    manifest, _ = ingest(source, SPEC, (16,), IngestConfig(), tmp_path, workers=1)
    listed = Counter(manifest.column("official_split"))
    assert listed == {"train": 104, "val": 34, "test": 35}
    official = split(manifest, Placement(), SplitConfig(official=True))
    assert _agreement(official) > 0.9  # but for near-duplicates across the folders
    anew = split(manifest, Placement(), SplitConfig())
    assert _agreement(anew) < 0.8
    for parts in (official, anew):
        assert {len(part) > 10 for part in (parts.train, parts.val, parts.test)} == {True}


def _agreement(parts: Split) -> float:
    """Share of the images that lie where the archive has them."""
    roles = {"train": parts.train, "val": parts.val, "test": parts.test}
    same = sum((part.column("official_split") == role).sum() for role, part in roles.items())
    return float(same / sum(map(len, roles.values())))

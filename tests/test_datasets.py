"""Every dataset in the directory keeps the same contract: its listing against its own twin, and against real files."""

from __future__ import annotations

import ast
import hashlib
import os
import resource
from collections import Counter
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow import datasets
from medflow.datasets import Listing, Planted
from medflow.datasets._faults import KINDS
from medflow.datasets._layout import is_litter
from medflow.datasets._workbook import read_rows, write_rows
from medflow.datasets.chest_xray_pneumonia import patient_of
from medflow.datasets.covid_radiography import HEADER
from medflow.errors import ConfigError, DataError
from medflow.records import Generated
from medflow.twins import write_twin

NAMES = datasets.names()
IMAGES = 100
SAMPLES = Path(os.environ.get("MEDFLOW_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
FOLDERS = {
    "covid_radiography": "COVID-19_Radiography_Dataset",
    "chest_xray_pneumonia": "chest_xray",
    "lung_disease": "Lung Disease Dataset",
}
OFFICIAL = {"chest_xray_pneumonia", "lung_disease", "nih_chestxray14"}
"""Datasets whose archives come divided."""


@pytest.fixture(scope="module", params=NAMES)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Listing]:
    root = tmp_path_factory.mktemp("clean") / request.param
    assert write_twin(request.param, root, Generated(images=IMAGES, seed=1)) == Planted()
    return request.param, root, datasets.get(request.param).listing(root)


@pytest.fixture(scope="module", params=NAMES)
def faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Planted]:
    root = tmp_path_factory.mktemp("faulty") / request.param
    planted = write_twin(request.param, root, Generated(images=IMAGES, seed=2, planted_faults=True))
    return request.param, root, planted


def pixels(path: Path) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), dtype=np.uint8), cv2.IMREAD_UNCHANGED)


def tree_digest(root: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        state.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


# -- the registry --------------------------------------------------------------------------------


def test_the_directory_is_the_registry():
    files = {path.stem for path in Path(datasets.__file__).parent.glob("[!_]*.py")}
    assert set(NAMES) == files - set(datasets.GENERIC) >= {"phantom", "covid_radiography", "chest_xray_pneumonia"}
    assert tuple(sorted(NAMES)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_filed_under_its_name(name: str):
    assert datasets.get(name).card.name == name
    assert datasets.module_of(name) == f"medflow.datasets.{name}"


@pytest.mark.parametrize(("wrong", "near"), [("phantm", "phantom"), ("covid", "covid_radiography"), ("_spec", None)])
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, near: str | None):
    with pytest.raises(ConfigError) as caught:
        datasets.get(wrong)
    assert repr(wrong) in caught.value.message
    assert near is None or f"did you mean {near!r}" in caught.value.hint
    assert all(name in caught.value.hint for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_dataset_imports_another(name: str):
    tree = ast.parse((Path(datasets.__file__).parent / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported.isdisjoint(f"medflow.datasets.{other}" for other in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete(name: str):
    card = datasets.get(name).card
    assert card.title and card.grouped_by and card.licence and card.limits and card.modality
    assert len({head.name for head in card.heads}) == len(card.heads)
    for head in card.heads:
        assert head.name.isidentifier() and head.name == head.name.lower()
        assert len(set(head.labels)) == len(head.labels) >= (1 if head.kind == "mask" else 2)
        assert head.kind != "mask" or len(head.labels) == 1


# -- every listing against its twin --------------------------------------------------------------


def test_a_twin_has_as_many_images_as_asked(twin: tuple[str, Path, Listing]):
    _, _, listing = twin
    assert len(listing.rows) == IMAGES
    assert all(finding.severity == "info" for finding in listing.findings)


def test_ids_are_unique_and_sorted(twin: tuple[str, Path, Listing]):
    ids = [row.image_id for row in twin[2].rows]
    assert ids == sorted(set(ids))


def test_paths_are_relative_posix_and_exist(twin: tuple[str, Path, Listing]):
    _, root, listing = twin
    for row in listing.rows:
        for path in (row.path, row.mask_path):
            if path is not None:
                assert not path.startswith("/") and ".." not in path and "\\" not in path
                assert (root / path).is_file()


def test_label_columns_are_those_of_the_card(twin: tuple[str, Path, Listing]):
    name, _, listing = twin
    card = datasets.get(name).card
    columns = {column for head in card.heads for column in head.columns()}
    for row in listing.rows:
        assert set(row.labels) == columns
        assert set(row.labels.values()) <= {0, 1, None}
        for head in card.heads:
            if head.kind == "exclusive":
                assert sum(row.labels[column] or 0 for column in head.columns()) == 1
    seen = Counter(column for row in listing.rows for column, value in row.labels.items() if value)
    assert set(seen) == columns, "every label occurs in a twin"


def test_masks_come_with_a_mask_head(twin: tuple[str, Path, Listing]):
    name, root, listing = twin
    has_head = datasets.get(name).card.mask_head() is not None
    for row in listing.rows:
        assert (row.mask_path is not None) == has_head
        if row.mask_path is not None:
            assert set(np.unique(pixels(root / row.mask_path))) == {0, 255}


def test_groups_are_whole_in_the_official_split(twin: tuple[str, Path, Listing]):
    name, _, listing = twin
    rows = [row for row in listing.rows if row.official_split is not None and row.group is not None]
    homes = {(row.group, row.official_split) for row in rows}
    assert len(homes) == len({row.group for row in rows})
    card = datasets.get(name).card
    assert all((row.group is not None) == (card.expects_groups() and not card.metadata) for row in listing.rows)


def test_demographics_are_possible(twin: tuple[str, Path, Listing]):
    for row in twin[2].rows:
        assert row.age is None or 0 <= row.age <= 120
        assert row.sex in {"F", "M", None}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_bytes(name: str, tmp_path: Path):
    request = Generated(images=30, seed=5, planted_faults=True)
    assert write_twin(name, tmp_path / "a", request) == write_twin(name, tmp_path / "b", request)
    write_twin(name, tmp_path / "c", request.model_copy(update={"seed": 6}))
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b") != tree_digest(tmp_path / "c")


def test_listing_opens_no_image(twin: tuple[str, Path, Listing], tmp_path: Path):
    """Emptied files list the same: names and tables are all that is read."""
    name, root, listing = twin
    images = {path for row in listing.rows for path in (row.path, row.mask_path) if path is not None}
    for path in root.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            is_image = path.relative_to(root).as_posix() in images
            copy.write_bytes(b"" if is_image else path.read_bytes())
    assert datasets.get(name).listing(tmp_path) == listing


@pytest.mark.parametrize("name", FOLDERS)
def test_the_root_may_be_the_folder_itself(name: str, tmp_path: Path):
    write_twin(name, tmp_path / "twin", Generated(images=24))
    outer = datasets.get(name).listing(tmp_path / "twin")
    inner = datasets.get(name).listing(tmp_path / "twin" / FOLDERS[name])
    assert [row.image_id for row in outer.rows] == [row.image_id for row in inner.rows]
    assert [row.path for row in outer.rows] == [f"{FOLDERS[name]}/{row.path}" for row in inner.rows]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["empty", "absent", "other"])
def test_a_wrong_root_is_refused_with_the_layout(name: str, content: str, tmp_path: Path):
    root = tmp_path / "data"
    if content != "absent":
        root.mkdir()
    if content == "other":
        (root / "cats").mkdir()
    with pytest.raises(DataError) as caught:
        datasets.get(name).listing(root)
    assert "expected" in caught.value.hint
    assert content != "other" or "cats" in caught.value.message


def test_stray_files_are_told_and_not_listed(twin: tuple[str, Path, Listing]):
    name, root, listing = twin
    beside = (root / listing.rows[0].path).parent
    strays = [beside / ".DS_Store", beside / "._copy.png", beside / "notes.txt", root / "__MACOSX" / "a.png"]
    (root / "__MACOSX").mkdir()
    for path in strays:
        path.write_bytes(b"x")
    try:
        found = datasets.get(name).listing(root)
    finally:
        for path in strays:
            path.unlink()
        (root / "__MACOSX").rmdir()
    assert found.rows == listing.rows
    before = sum(finding.count for finding in listing.findings if finding.check == "stray_file")
    [stray] = [finding for finding in found.findings if finding.check == "stray_file"]
    # What lies beside the archive's own folder is nobody's business; what lies inside is told.
    inside = 4 if name not in FOLDERS else 3
    assert (stray.severity, stray.count) == ("info", before + inside)


# -- planted faults ------------------------------------------------------------------------------


def test_every_fault_that_fits_the_layout_is_planted(faulty: tuple[str, Path, Planted]):
    name, _, planted = faulty
    card = datasets.get(name).card
    expected = set(KINDS)
    if card.mask_head() is None:
        expected -= {"mask_missing", "mask_mismatched", "mask_empty"}
    if name not in OFFICIAL:
        expected -= {"duplicate_in_other_split"}
    if name not in OFFICIAL or card.grouped_by != "patient":
        expected -= {"patient_in_two_splits"}
    assert set(planted.faults) == expected
    assert all(len(paths) == IMAGES // 50 for paths in planted.faults.values())
    at_fault = [path for paths in planted.faults.values() for path in paths]
    assert len(at_fault) == len(set(at_fault)), "no image has two faults"


def test_faults_are_what_they_say(faulty: tuple[str, Path, Planted]):
    name, root, planted = faulty
    faults, rows = planted.faults, {row.path: row for row in datasets.get(name).listing(root).rows}
    bytes_of = {path: (root / path).read_bytes() for path in rows}
    twins = Counter(bytes_of.values())
    assert {path for paths in faults.values() for path in paths} <= set(rows)
    for path in faults["not_an_image"]:
        assert pixels(root / path) is None and bytes_of[path].decode().isascii()
    for path in faults["truncated"]:
        assert not bytes_of[path].endswith((b"IEND\xaeB`\x82", b"\xff\xd9"))
    for kind in ("duplicate", "duplicate_in_other_split", "label_conflict"):
        for path in faults.get(kind, ()):
            [original] = [other for other in rows if other != path and bytes_of[other] == bytes_of[path]]
            assert (rows[original].labels != rows[path].labels) == (kind == "label_conflict")
            differs = rows[original].official_split != rows[path].official_split
            assert differs == (kind == "duplicate_in_other_split")
    copies = sum(len(faults.get(kind, ())) for kind in ("duplicate", "duplicate_in_other_split", "label_conflict"))
    texts = len(faults["not_an_image"])
    assert sum(count - 1 for count in twins.values()) == copies + texts - 1, "texts are alike among themselves"
    assert all(twins[bytes_of[path]] == 1 for path in faults["near_duplicate"])


def test_unknown_labels_belong_to_no_class(faulty: tuple[str, Path, Planted]):
    name, root, planted = faulty
    listing = datasets.get(name).listing(root)
    head = datasets.get(name).card.label_head()
    values = {row.path: [row.labels[column] for column in head.columns()] for row in listing.rows}
    # Of independent labels, all 0 is a fact of its own.
    lost = {path for path, said in values.items() if (None in said if head.kind == "independent" else 1 not in said)}
    assert lost == set(planted.faults["unknown_label"])
    [finding] = [finding for finding in listing.findings if finding.check == "unknown_label"]
    assert finding.count == len(lost)


def test_mask_faults(faulty: tuple[str, Path, Planted]):
    name, root, planted = faulty
    if datasets.get(name).card.mask_head() is None:
        pytest.skip("no masks")
    rows = {row.path: row for row in datasets.get(name).listing(root).rows}
    without = {path for path, row in rows.items() if row.mask_path is None}
    assert without == set(planted.faults["mask_missing"])
    masks = {path: pixels(root / row.mask_path) for path, row in rows.items() if row.mask_path}
    assert {path for path, mask in masks.items() if not mask.any()} == set(planted.faults["mask_empty"])
    [(usual, _)] = Counter(mask.shape[:2] for mask in masks.values()).most_common(1)
    lopsided = {path for path, mask in masks.items() if mask.shape[:2] != usual}
    assert lopsided == set(planted.faults["mask_mismatched"])


def test_leaked_patients_are_in_two_splits(faulty: tuple[str, Path, Planted]):
    name, root, planted = faulty
    rows = datasets.get(name).listing(root).rows
    splits: dict[str | None, set[str | None]] = {}
    for row in rows:
        splits.setdefault(row.group, set()).add(row.official_split)
    leaked = {group for group, homes in splits.items() if group is not None and len(homes) > 1}
    assert leaked == {row.group for row in rows if row.path in planted.faults.get("patient_in_two_splits", ())}


# -- writing a twin ------------------------------------------------------------------------------


def test_a_full_folder_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        write_twin("phantom", tmp_path / "mine", Generated(images=24))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_too_few_images_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="too few"):
        write_twin("phantom", tmp_path / "new", Generated(images=23))


def test_a_broken_off_twin_leaves_nothing(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # as good as a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            write_twin("phantom", tmp_path / "new", Generated(images=24))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="seed"):
        write_twin("phantom", tmp_path / "new", Generated(images=24, seed=-1))


def test_a_twin_may_go_to_an_empty_folder(tmp_path: Path):
    write_twin("phantom", tmp_path, Generated(images=24))
    assert (tmp_path / "phantom.csv").is_file()


# -- the archives' own ways ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "patient"),
    [
        ("person1180_virus_2008.jpeg", "person1180_virus"),
        ("person1180_bacteria_2008.jpeg", "person1180_bacteria"),
        ("person1372_virus_2365_1.jpeg", "person1372_virus"),
        ("IM-0505-0001-0002.jpeg", "IM-0505"),
        ("NORMAL2-IM-0588-0001.jpeg", "NORMAL2-IM-0588"),
        ("person1180.jpeg", None),
        ("CIMG-IM-0588-0001.jpeg", None),
    ],
)
def test_the_patient_is_in_the_file_name(file: str, patient: str | None):
    assert patient_of(file) == patient


def test_a_nested_copy_alone_is_read(tmp_path: Path):
    write_twin("chest_xray_pneumonia", tmp_path / "twin", Generated(images=24))
    plain = datasets.get("chest_xray_pneumonia").listing(tmp_path / "twin")
    [copies] = [finding for finding in plain.findings if finding.check == "nested_copy"]
    assert copies.count == sum(row.official_split == "val" for row in plain.rows)
    deep = tmp_path / "deep" / "chest_xray"
    deep.mkdir(parents=True)
    (tmp_path / "twin" / "chest_xray").rename(deep / "chest_xray")
    nested = datasets.get("chest_xray_pneumonia").listing(tmp_path / "deep")
    assert [row.image_id for row in nested.rows] == [row.image_id for row in plain.rows]


def test_the_archive_writes_normal_in_capitals(tmp_path: Path):
    write_twin("covid_radiography", tmp_path / "twin", Generated(images=24))
    base = tmp_path / "twin" / FOLDERS["covid_radiography"]
    names = [row[0] for row in read_rows(base / "Normal.metadata.xlsx", HEADER) or []]
    assert "NORMAL-1" in names and not any(str(name).startswith("Normal") for name in names)
    assert all(row.source for row in datasets.get("covid_radiography").listing(tmp_path / "twin").rows)


def test_sizes_and_modes_are_the_archives(tmp_path: Path):
    write_twin("covid_radiography", tmp_path / "covid", Generated(images=60))
    rows = datasets.get("covid_radiography").listing(tmp_path / "covid").rows
    images = [pixels(tmp_path / "covid" / row.path) for row in rows]
    masks = [pixels(tmp_path / "covid" / str(row.mask_path)) for row in rows]
    assert {image.shape[:2] for image in images} == {(299, 299)} and {mask.shape for mask in masks} == {(256, 256, 3)}
    assert {image.ndim for image in images} == {2, 3}
    write_twin("chest_xray_pneumonia", tmp_path / "chest", Generated(images=60))
    rows = datasets.get("chest_xray_pneumonia").listing(tmp_path / "chest").rows
    images = [pixels(tmp_path / "chest" / row.path) for row in rows]
    assert len({image.shape[:2] for image in images}) > 50 and {image.ndim for image in images} == {2, 3}


def test_reports_of_your_own_lie_beside_the_archive(tmp_path: Path):
    folder = tmp_path / "chest_xray" / "train" / "NORMAL"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"IM-000{number}-0001.jpeg").touch()
    (tmp_path / "chest_xray" / "reports.csv").write_text(
        "image,text\ntrain/NORMAL/IM-0000-0001.jpeg,Clear lungs.\nIM-0001-0001.jpeg,\nIM-9999-0001.jpeg,Whose?\n"
    )
    found = datasets.get("chest_xray_pneumonia").listing(tmp_path)
    assert [row.text for row in found.rows] == ["Clear lungs.", None, None]
    assert [(item.check, item.count) for item in found.findings] == [("report_unplaced", 1)]


def test_a_class_may_lack_masks_and_sheets(tmp_path: Path):
    image = tmp_path / "COVID" / "images" / "COVID-1.PNG"
    image.parent.mkdir(parents=True)
    image.touch()
    [row] = datasets.get("covid_radiography").listing(tmp_path).rows
    assert (row.image_id, row.mask_path, row.source) == ("COVID/COVID-1.PNG", None, None)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_workbook_is_told_not_raised(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("book")
    (folder / "COVID" / "images").mkdir(parents=True)
    (folder / "COVID" / "images" / "COVID-1.png").touch()
    sheet = folder / "COVID.metadata.xlsx"
    write_rows(sheet, HEADER, [("COVID-1", "PNG", "256*256", "https://eurorad.org")])
    whole = sheet.read_bytes()
    sheet.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    listing = datasets.get("covid_radiography").listing(folder)
    checks = {finding.check for finding in listing.findings}
    assert checks == {"metadata_unreadable", "image_without_metadata"}
    assert listing.rows[0].source is None


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    write_twin("covid_radiography", tmp_path / "twin", Generated(images=24))
    base = tmp_path / "twin" / FOLDERS["covid_radiography"]
    plain = datasets.get("covid_radiography").listing(tmp_path / "twin")
    (base / "COVID").rename(tmp_path / "elsewhere")
    (base / "COVID").symlink_to(tmp_path / "elsewhere")
    assert datasets.get("covid_radiography").listing(tmp_path / "twin") == plain
    (base / "back").symlink_to(base)
    (tmp_path / "elsewhere" / "across").symlink_to(base / "Normal")
    (base / "Normal" / "across").symlink_to(tmp_path / "elsewhere")
    (base / "COVID" / "images" / "COVID-999.png").symlink_to("nowhere")
    rows = datasets.get("covid_radiography").listing(tmp_path / "twin").rows
    assert {row.image_id for row in rows} - {row.image_id for row in plain.rows} == {"COVID/COVID-999.png"}


@given(parts=st.lists(st.sampled_from(["a", "b.png", "__MACOSX", ".DS_Store"]), min_size=1))
def test_litter_is_litter_at_any_depth(parts: list[str]):
    assert is_litter(PurePosixPath(*parts)) == ("__MACOSX" in parts or parts[-1] == ".DS_Store")


# -- real files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "masks", "labels"),
    [
        ("covid_radiography", 80, 3, {"COVID": 22, "Lung_Opacity": 19, "Normal": 24, "Viral Pneumonia": 15}),
        ("chest_xray_pneumonia", 89, 0, {"NORMAL": 40, "PNEUMONIA": 49}),
        (
            "lung_disease",
            173,
            0,
            {
                "Bacterial Pneumonia": 35,
                "Corona Virus Disease": 32,
                "Normal": 35,
                "Tuberculosis": 36,
                "Viral Pneumonia": 35,
            },
        ),
    ],
)
def test_real_samples_are_listed(name: str, images: int, masks: int, labels: dict[str, int]):
    root = SAMPLES / name
    if not root.is_dir():
        pytest.skip("no real samples here")
    listing = datasets.get(name).listing(root)
    assert listing.findings == ()
    assert len(listing.rows) == images
    assert sum(row.mask_path is not None for row in listing.rows) == masks
    counts = Counter(column for row in listing.rows for column, value in row.labels.items() if value)
    assert counts == {f"diagnosis.{label}": count for label, count in labels.items()}
    assert all((root / row.path).is_file() for row in listing.rows)


def test_real_patients_and_sources():
    if not (SAMPLES / "chest_xray_pneumonia").is_dir():
        pytest.skip("no real samples here")
    chest = datasets.get("chest_xray_pneumonia").listing(SAMPLES / "chest_xray_pneumonia").rows
    groups = Counter(row.group for row in chest)
    assert groups["person489_virus"] == groups["person1430_bacteria"] == 2 and None not in groups
    homes = {(row.group, row.official_split) for row in chest}
    assert len(homes) == len(groups)
    covid = datasets.get("covid_radiography").listing(SAMPLES / "covid_radiography").rows
    assert all(row.source is not None and row.source.startswith("https://") for row in covid)

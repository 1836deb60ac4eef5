"""Datasets that a YAML declares: folders and tables, their twins, and what is odd about other people's files."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from medflow import datasets, fetch, ingest, normalize, split
from medflow.config.sections import Declaration, IngestConfig, SourceConfig, SplitConfig
from medflow.datasets import Listing
from medflow.datasets._cells import flag, sex, years
from medflow.datasets._declared import Pattern
from medflow.datasets._files import Finder
from medflow.datasets._tables import read_table, sniff
from medflow.errors import ConfigError, DataError
from medflow.platform import code
from medflow.records import Finding, Generated, Placement
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
        "columns": {"path": "file", "group": "patient_id", "age": "age", "sex": "sex", "view": "view", "split": "part"},
    },
    "masks in a column": {
        "kind": "table", "heads": [{**LABEL, "column": "dx"}, MASK], "csv": "t.csv", "images": "images",
        "columns": {"path": "file", "mask": "mask_file", "text": "report", "site": "site", "source": "source"},
    },
}  # fmt: skip


def declared(values: dict) -> Declaration:
    return TypeAdapter(Declaration).validate_python(values)


def listed(values: dict, root: Path) -> Listing:
    return datasets.get("mine", declared(values)).listing(root)


def found(listing: Listing, check: str) -> Finding | None:
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


def test_a_twin_repeats_bit_for_bit_and_a_seed_changes_it(tmp_path: Path) -> None:
    values = LAYOUTS["several labels a cell"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_twin("mine", tmp_path / name, Generated(images=24, seed=seed), declared(values))
    a, b, c = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b", "c")
    )
    assert a == b != c


@pytest.mark.parametrize(
    ("change", "request_"),
    [
        ({"group_pattern": "P[0-9]+"}, Generated(images=24)),
        ({"csv": "/elsewhere/t.csv"}, Generated(images=24)),
        ({}, Generated(images=24, planted_faults=True)),
    ],
)
def test_a_twin_that_cannot_be_made_is_refused(change: dict, request_: Generated, tmp_path: Path) -> None:
    values = LAYOUTS["one column"] | change
    with pytest.raises(ConfigError):
        write_twin("mine", tmp_path / "twin", request_, declared(values))
    assert not (tmp_path / "twin").exists()


def test_a_declared_dataset_goes_through_to_normalize(tmp_path: Path) -> None:
    values = LAYOUTS["several labels a cell"] | {"channels": 1}
    root = tmp_path / "twin"
    write_twin("mine", root, Generated(images=40), declared(values))
    spec = datasets.get("mine", declared(values))
    source = fetch.resolve(SourceConfig(kind="folder", path=str(root)), spec.card, spec.beside)
    manifest, pixels = ingest.ingest(source, spec, (32,), IngestConfig(), tmp_path / "work", workers=1)
    parts = split.split(manifest, Placement(), SplitConfig())
    measured = normalize.normalize(parts.train, pixels)
    assert len(manifest) == 40 and manifest.card.name == "mine" and manifest.has_mask().all()
    assert not set(parts.train.column("group")) & set(parts.test.column("group"))
    assert 0 < measured.sizes[0].mean[0] < 1


# -- the registry --------------------------------------------------------------------------------


def test_a_declared_dataset_is_a_module_of_the_registry_and_no_name_in_it() -> None:
    values = declared(LAYOUTS["class folders"])
    assert datasets.module_of("mine", values) == "medflow.datasets.folder"
    assert not set(datasets.GENERIC) & set(datasets.names())
    with pytest.raises(ConfigError, match="name of a dataset that medflow has"):
        datasets.get("phantom", values)
    with pytest.raises(ConfigError) as refusal:
        datasets.get("folder")
    assert "medflow new" in refusal.value.hint


def test_a_table_elsewhere_is_part_of_the_source(tmp_path: Path) -> None:
    images = tmp_path / "images"
    make(images, "a.png", "b.png")
    table = write(tmp_path / "t.csv", [["file", "dx"], ["a", "Clear"], ["b", "Bad Cold"]])
    spec = datasets.get("mine", declared(LAYOUTS["one column"] | {"csv": str(table)}))
    config = SourceConfig(kind="folder", path=str(images))
    before = fetch.resolve(config, spec.card, spec.beside)
    assert fetch.resolve(config, spec.card, spec.beside).digest() == before.digest()
    write(table, [["file", "dx"], ["a", "Clear"], ["b", "Clear"]])
    assert fetch.resolve(config, spec.card, spec.beside).digest() != before.digest()
    assert len(spec.listing(images).rows) == 2


# -- what cannot be meant --------------------------------------------------------------------------

WRONG = {
    "no label folder": {"kind": "folder", "heads": [LABEL], "images": "images"},
    "a label folder and no head": {"kind": "folder", "heads": [MASK], "images": "{label}", "masks": "masks"},
    "a place that is none": {"kind": "folder", "heads": [LABEL], "images": "{label}/{patient}"},
    "a place twice": {"kind": "folder", "heads": [LABEL], "images": "{label}/{label}"},
    "outside": {"kind": "folder", "heads": [LABEL], "images": "../{label}"},
    "absolute": {"kind": "folder", "heads": [LABEL], "images": "/data/{label}"},
    "a mask head and no masks": {"kind": "folder", "heads": [LABEL, MASK]},
    "masks that are images": {"kind": "folder", "heads": [LABEL, MASK], "masks": "{label}"},
    "independent folders": {"kind": "folder", "heads": [{**LABEL, "kind": "independent"}]},
    "one class": {"kind": "folder", "heads": [{**LABEL, "labels": ["Clear"]}]},
    "a label twice": {"kind": "folder", "heads": [{**LABEL, "labels": ["Clear", "Clear"]}]},
    "no regular expression": {"kind": "folder", "heads": [LABEL], "group_pattern": "("},
    "a group twice": LAYOUTS["several labels a cell"] | {"group_pattern": "x"},
    "an exclusive list": LAYOUTS["one column"] | {"heads": [{**LABEL, "column": "dx", "separator": "|"}]},
    "a label that is ignored": {"kind": "folder", "heads": [LABEL], "ignore": ["Clear"]},
    "a table outside": LAYOUTS["one column"] | {"csv": "../t.csv"},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_declaration_that_cannot_be_meant_is_refused(case: str) -> None:
    with pytest.raises(ValidationError):
        declared(WRONG[case])


# -- odd folders ---------------------------------------------------------------------------------


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"not opened")


def test_a_new_class_folder_stops_the_run_and_ignore_leaves_it_out(tmp_path: Path) -> None:
    make(tmp_path, "Clear/a.png", "Bad Cold/b.png", "Flu/c.png", "top.png", "Clear/notes.txt")
    values = LAYOUTS["class folders"]
    listing = listed(values, tmp_path)
    assert [row.image_id for row in listing.rows] == ["Bad Cold/b.png", "Clear/a.png", "Flu/c.png"]
    assert set(listing.rows[2].labels.values()) == {None}
    assert found(listing, "unknown_label").severity == "error"
    assert found(listing, "unknown_label").examples == ("Flu/c.png",)
    assert found(listing, "stray_file").count == 2
    ignoring = listed(values | {"ignore": ["Flu"]}, tmp_path)
    assert len(ignoring.rows) == 2 and found(ignoring, "unknown_label") is None
    assert found(ignoring, "ignored_label").count == 1


def test_masks_are_told_where_they_are_amiss(tmp_path: Path) -> None:
    make(tmp_path, "Clear/images/a.png", "Clear/images/b.jpg", "Clear/masks/a.jpg", "Clear/masks/a.png")
    make(tmp_path, "Bad Cold/images/a.png", "Bad Cold/masks/z.png")
    listing = listed(LAYOUTS["masks below classes"], tmp_path)
    masks = {row.path: row.mask_path for row in listing.rows}
    assert masks == {
        "Clear/images/a.png": "Clear/masks/a.jpg", "Clear/images/b.jpg": None, "Bad Cold/images/a.png": None,
    }  # fmt: skip
    assert found(listing, "mask_repeated").examples == ("Clear/masks/a.png",)
    assert found(listing, "mask_without_image").examples == ("Bad Cold/masks/z.png",)


def test_a_pattern_in_a_path_gives_the_group(tmp_path: Path) -> None:
    make(tmp_path, "Clear/p7_1.png", "Clear/p7_2.png", "Bad Cold/p8_1.png", "Bad Cold/x.png")
    listing = listed(LAYOUTS["class folders"] | {"group_pattern": r"(p\d+)_", "grouped_by": "patient"}, tmp_path)
    assert [row.group for row in listing.rows] == ["p8", None, "p7", "p7"]
    assert found(listing, "group_unknown").examples == ("Bad Cold/x.png",)


@pytest.mark.parametrize("content", ["absent", "empty", "other"])
def test_a_folder_without_such_images_is_refused(content: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if content != "absent":
        root.mkdir()
    if content == "other":
        make(root, "a.png")
    with pytest.raises(DataError) as refusal:
        listed(LAYOUTS["class folders"], root)
    assert "declare.images" in refusal.value.hint


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0{}*\\", exclude_categories=["Cs"]), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(folders=st.tuples(names, names, names), file=names)
def test_a_folder_pattern_reads_any_name(folders: tuple[str, str, str], file: str) -> None:
    """Whatever folders are called, the pattern gives their names back."""
    first, label, fixed = folders
    if {first, label, fixed, file} & {".", ".."}:
        return
    place = Pattern(f"{{split}}/{{label}}/{fixed}").place(PurePosixPath(first, label, fixed, file))
    assert place is not None and place.says == {"split": first, "label": label} and place.rest == PurePosixPath(file)
    assert Pattern("{label}").place(PurePosixPath(file)) is None


# -- odd tables ----------------------------------------------------------------------------------


def write(path: Path, rows: list[list[str]], *, encoding: str = "utf-8", delimiter: str = ",", end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as lines:
        csv.writer(lines, delimiter=delimiter, lineterminator=end).writerows(rows)
    return path


def test_every_oddity_of_a_table_is_told(tmp_path: Path) -> None:
    make(tmp_path, *(f"images/{name}.png" for name in "abcdefg"))
    rows = [
        ["file", "Found", "who", "age", "sex", "part"],
        ["a", "A|B", "1", "058Y", "female", "training"],
        ["images/b.png", "No Finding", "1", "", "M", "test"],
        ["c.png", "", "2", "18M", "unknown", "val"],
        ["d", "A|Z", "3", "old", "X", "holdout"],
        ["c", "", "2", "18M", "unknown", "val"],
        ["b", "A", "1", "", "M", "test"],
        ["nowhere.png", "A", "4", "", "", ""],
        ["", "A", "4", "", "", ""],
        ["e", "A", "5", "", "", "", "more"],
        ["f"],
    ]
    write(tmp_path / "t.csv", rows)
    columns = {"path": "file", "group": "who", "age": "age", "sex": "sex", "split": "part"}
    values = {"kind": "table", "heads": [CELL], "csv": "t.csv", "images": "images", "columns": columns}
    listing = listed(values, tmp_path)
    by_name = {PurePosixPath(row.path).stem: row for row in listing.rows}
    assert set(by_name) == set("abcdf")
    assert list(by_name["a"].labels.values()) == [1, 1, 0]
    assert list(by_name["b"].labels.values()) == [0, 0, 0], "no finding is no, and not unknown"
    assert list(by_name["c"].labels.values()) == [None] * 3, "an empty cell is unknown, and not no"
    assert (by_name["a"].age, by_name["a"].sex, by_name["a"].official_split) == (58.0, "F", "train")
    assert (by_name["c"].age, by_name["c"].sex, by_name["d"].sex) == (1.5, None, "X")
    assert by_name["f"].group is None
    told = {finding.check: (finding.severity, finding.count) for finding in listing.findings}
    assert told == {
        "unknown_label": ("error", 1), "row_conflict": ("error", 1), "row_repeated": ("warning", 1),
        "file_missing": ("warning", 1), "row_nameless": ("warning", 1), "row_ragged": ("warning", 1),
        "unknown_split": ("warning", 1), "age_unreadable": ("warning", 1), "group_unknown": ("warning", 1),
        "row_missing": ("info", 2),
    }  # fmt: skip


def test_a_wrong_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    write(tmp_path / "t.csv", [["file", "Diagnosis"], ["a", "Clear"]])
    with pytest.raises(DataError) as refusal:
        listed(LAYOUTS["one column"] | {"heads": [{**LABEL, "column": "diagnose"}]}, tmp_path)
    assert "did you mean 'Diagnosis'?" in refusal.value.hint


def test_flags_that_are_none_stop_the_run(tmp_path: Path) -> None:
    make(tmp_path, "images/a.png", "images/b.png")
    write(tmp_path / "t.csv", [["file", "A", "B", "C"], ["a", "1.0", "-1", ""], ["b", "0.7", "0", "yes"]])
    columns = {"path": "file"}
    listing = listed(
        {"kind": "table", "heads": [SIGNS], "csv": "t.csv", "images": "images", "columns": columns}, tmp_path
    )
    assert [list(row.labels.values()) for row in listing.rows] == [[1, None, None], [None, 0, 1]]
    assert found(listing, "unknown_label").examples == ("images/b.png (A=0.7)",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_csv_is_read_as_what_it_is(encoding: str, delimiter: str, end: str, tmp_path: Path) -> None:
    rows = [["Image Index", "a, b; c", "Größe"], ["x.png", "one, two", "Ä"], ["y.png", 'quo"ted\nline', "ß"]]
    path = write(tmp_path / "t.csv", rows, encoding=encoding, delimiter=delimiter, end=end)
    guessed = sniff(path)
    assert guessed == ("utf-8" if encoding == "utf-8-sig" else encoding, delimiter)
    table = read_table(path, *guessed)
    assert [list(table.columns), *map(list, table.rows)] == rows


def test_a_header_with_bare_commas_is_a_column_more(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Image,Size[w,h],\na.png,1,2,\nb.png,3\n")
    table = read_table(path, "utf-8", ",")
    assert table.columns == ("Image", "Size[w", "h]")
    assert table.rows == (("a.png", "1", "2"), ("b.png", "3", ""))


cells = st.text(
    st.characters(codec="utf-8", exclude_characters="|", exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6
)
words = st.sets(st.sampled_from(SIGNS["labels"]))


@settings(max_examples=40, deadline=None)
@given(
    said=st.lists(st.one_of(st.none(), words), min_size=1, max_size=6),
    people=st.lists(cells, min_size=6, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t"]),
    one_hot=st.booleans(),
)
def test_a_table_lists_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    said: list[set[str] | None],
    people: list[str],
    delimiter: str,
    one_hot: bool,
) -> None:
    """Written as columns of flags or as one cell of words: unknown, none and some come back as such."""
    root = tmp_path_factory.mktemp("table")
    make(root, *(f"images/{place}.png" for place in range(len(said))))
    if one_hot:
        header = ["file", "who", *SIGNS["labels"]]
        lines = [["" if one is None else str(int(label in one)) for label in SIGNS["labels"]] for one in said]
    else:
        header = ["file", "who", "Found"]
        lines = [["" if one is None else "|".join(sorted(one)) or "No Finding"] for one in said]
    rows = [[str(place), people[place], *line] for place, line in enumerate(lines)]
    write(root / "t.csv", [header, *rows], delimiter=delimiter)
    listing = listed(
        {"kind": "table", "heads": [SIGNS if one_hot else CELL], "csv": "t.csv", "delimiter": delimiter,
         "images": "images", "columns": {"path": "file", "group": "who"}},
        root,
    )  # fmt: skip
    assert listing.findings == ()
    got = {int(PurePosixPath(row.path).stem): (row.group, list(row.labels.values())) for row in listing.rows}
    wanted = [[None if one is None else int(label in one) for label in SIGNS["labels"]] for one in said]
    assert got == {place: (people[place], labels) for place, labels in enumerate(wanted)}


# -- cells ---------------------------------------------------------------------------------------


def test_a_cell_finds_the_file_it_names_and_no_other() -> None:
    finder = Finder([PurePosixPath(path) for path in ("a/x.png", "b/x.png", "a/y.tar.png", "top.png", "deep/top.png")])
    assert (
        finder.find("a/x.png") == finder.find("a/x") == finder.find("/kaggle/input/a/x.png") == PurePosixPath("a/x.png")
    )
    assert finder.find(r"C:\data\b\x.png") == PurePosixPath("b/x.png")
    assert finder.find("y.tar") == finder.find("y.tar.png") == PurePosixPath("a/y.tar.png")
    assert finder.find("top.png") == PurePosixPath("top.png"), "exactly the cell wins"
    assert finder.find("c/x.png") is finder.find("../a/x.png") is finder.find("z") is finder.find("/") is None
    with pytest.raises(DataError, match=r"a/x\.png and b/x\.png"):
        finder.find("x.png")


def test_ages_sexes_and_flags_are_read_as_people_write_them() -> None:
    assert [years(cell)[0] for cell in ("58", "058Y", "60.5", "18M", "", "nan")] == [58, 58, 60.5, 1.5, None, None]
    assert [years(cell)[1] for cell in ("-1", "old", "1e3", "90+")] == [False] * 4
    assert [sex(cell) for cell in ("F", "male", "unknown", "", "other")] == ["F", "M", None, None, "other"]
    assert [flag(cell)[0] for cell in ("1", "1.0", "TRUE", "0", "no", "-1", "", "2")] == [
        1,
        1,
        1,
        0,
        0,
        None,
        None,
        None,
    ]
    assert [flag(cell)[1] for cell in ("-1", "", "2", "x", "inf", "nan")] == [True, True, False, False, False, True]


def test_the_code_that_reads_a_declared_dataset_is_in_the_cache_key() -> None:
    """`module_of` is what the pipeline adds to the roots of `ingest`; nothing else reaches that module."""
    for layout, reached in (("class folders", "folder"), ("one column", "table")):
        module = datasets.module_of("mine", declared(LAYOUTS[layout]))
        modules = code.reached([module]).modules
        assert {f"medflow.datasets.{reached}", "medflow.datasets._declared"} <= set(modules)
    assert {"medflow.datasets._tables", "medflow.datasets._cells", "medflow.datasets._files"} <= set(modules)

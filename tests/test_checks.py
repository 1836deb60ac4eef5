"""Each check on a manifest that fails it, and on one that does not; severities; the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medflow.checks import Checked, check
from medflow.config.sections import ValidateConfig
from medflow.errors import ChecksFailed
from medflow.records import MANIFEST_COLUMNS, DatasetCard, Finding, HeadSpec, Manifest

FINDING = HeadSpec(kind="exclusive", name="finding", labels=("clear", "nodule"))
SIGNS = HeadSpec(kind="independent", name="signs", labels=("mass", "edema"))
LUNG = HeadSpec(kind="mask", name="lung", labels=("lung",))
TOLERANT = {"max_quarantined": 1.0}
IMAGES = 24


def good_rows(heads: tuple[HeadSpec, ...] = (FINDING, LUNG)) -> list[dict]:
    """Rows with nothing wrong; hashes far apart, images of one patient in pairs."""
    return [_good_row(number, heads) for number in range(IMAGES)]


def _good_row(number: int, heads: tuple[HeadSpec, ...]) -> dict:
    positive = number % 2
    rng = np.random.default_rng([7, number])
    labels = {name: int(place == positive) for head in heads for place, name in enumerate(head.columns())}
    return labels | {
        "image_id": f"image-{number:02}",
        "path": f"images/image-{number:02}.png",
        "mask_path": f"masks/image-{number:02}.png",
        "sha256": f"{number:064x}",
        "group": f"patient-{number // 2:02}",
        "age": 40.0 + number,
        "sex": "FM"[number % 2],
        "view": "PA",
        "width": 299,
        "height": 299,
        "mode": "L",
        "bytes": 40_000 + number,
        "mean": 120.0 + number,
        "std": 50.0,
        "blur": 100.0,
        "phash": f"{int(rng.integers(0, 2**63)) * 2 + 1:016x}",
        "mask_width": 256,
        "mask_height": 256,
        "mask_fraction": 0.3,
        "pixel_row": number,
    }


def manifest_of(rows: list[dict], heads: tuple[HeadSpec, ...] = (FINDING, LUNG)) -> Manifest:
    card = DatasetCard(name="sample", title="Sample <set>", heads=heads, channels=1, grouped_by="patient")
    kinds = dict(MANIFEST_COLUMNS) | {name: "int8" for head in heads for name in head.columns()}
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in kinds.items()])
    return Manifest(card=card, table=pyarrow.Table.from_pylist(rows, schema=schema))


def spoiled(changes: dict[int, dict], heads: tuple[HeadSpec, ...] = (FINDING, LUNG)) -> Manifest:
    rows = good_rows(heads)
    for number, change in changes.items():
        rows[number].update(change)
    return manifest_of(rows, heads)


def finding(checked: Checked, name: str) -> Finding:
    (only,) = [item for item in checked.findings.findings if item.check == name]
    return only


def kept_ids(checked: Checked) -> set[str]:
    return set(checked.kept.column("image_id"))


def ids(*numbers: int) -> set[str]:
    return {f"image-{number:02}" for number in numbers}


ALL = ids(*range(IMAGES))
NO_PIXELS = {
    "error": "truncated", "pixel_row": None, "sha256": None, "phash": None, "width": None, "height": None,
    "mean": None, "std": None, "blur": None,
}  # fmt: skip
COPY_OF_2 = {"sha256": f"{2:064x}", "phash": good_rows()[2]["phash"]}

#: check → what spoils some rows of good_rows, and the rows that are then found.
SPOILED: dict[str, tuple[dict[int, dict], set[int]]] = {
    "unreadable": ({3: NO_PIXELS, 5: {"pixel_row": None}}, {3, 5}),
    "blank": ({4: {"std": 2.9}}, {4}),
    "tiny": ({4: {"width": 63}, 9: {"height": 12, "width": 12, "mask_height": 12, "mask_width": 12}}, {4, 9}),
    "duplicate": ({4: COPY_OF_2, 6: COPY_OF_2}, {4, 6}),
    "near_duplicate": ({4: {"phash": f"{int(good_rows()[2]['phash'], 16) ^ 0b10101:016x}"}}, {4}),
    "label_conflict": ({3: COPY_OF_2}, {2, 3}),
    "label_impossible": (
        {1: {"finding.clear": 1}, 2: {"finding.clear": 0}, 3: {"finding.nodule": 2}},
        {1, 2, 3},
    ),
    "mask_missing": ({4: {"mask_path": None, "mask_width": None, "mask_height": None, "mask_fraction": None}}, {4}),
    "mask_empty": ({4: {"mask_fraction": 0.0}}, {4}),
    "mask_mismatched": (
        {4: {"mask_height": 128}, 5: {"mask_error": "cannot be read", "mask_width": None, "mask_fraction": None}},
        {4, 5},
    ),
    "metadata": ({1: {"age": 121.0}, 2: {"age": -1.0}, 3: {"sex": "X"}, 4: {"view": "sideways"}}, {1, 2, 3, 4}),
}


def only(name: str, severity: str) -> ValidateConfig:
    """Everything off but one check."""
    off = dict.fromkeys(SPOILED, "off")
    return ValidateConfig(**(off | {name: severity} | TOLERANT))


def test_every_check_of_the_settings_is_tested() -> None:
    severities = {name for name, field in ValidateConfig.model_fields.items() if isinstance(field.default, str)}
    assert severities == set(SPOILED)


def test_good_rows_pass() -> None:
    strict = ValidateConfig(**dict.fromkeys(SPOILED, "error"))
    checked = check(manifest_of(good_rows()), strict)
    assert checked.findings.findings == ()
    assert (checked.findings.images, checked.findings.quarantined) == (IMAGES, 0)
    assert checked.kept.digest() == manifest_of(good_rows()).digest()


@pytest.mark.parametrize("name", SPOILED)
def test_error_stops_and_says_what_to_do(name: str) -> None:
    changes, rows = SPOILED[name]
    with pytest.raises(ChecksFailed) as stopped:
        check(spoiled(changes), only(name, "error"))
    assert f"check {name} failed for {len(rows)} images" in stopped.value.message
    assert f"image-{min(rows):02}" in stopped.value.message
    assert f"validate.{name}=warning" in stopped.value.hint


@pytest.mark.parametrize("name", SPOILED)
def test_warning_leaves_rows_out_with_a_count(name: str) -> None:
    changes, rows = SPOILED[name]
    checked = check(spoiled(changes), only(name, "warning"))
    assert finding(checked, name).count == len(rows)
    assert finding(checked, name).severity == "warning"
    left_out = set() if name == "mask_mismatched" else ids(*rows)
    assert kept_ids(checked) == ALL - left_out
    assert checked.findings.quarantined == len(left_out)


@pytest.mark.parametrize("name", SPOILED)
def test_info_tells_and_keeps(name: str) -> None:
    changes, rows = SPOILED[name]
    checked = check(spoiled(changes), only(name, "info"))
    assert finding(checked, name).count == len(rows)
    without_pixels = ids(*rows) if name == "unreadable" else set()
    assert kept_ids(checked) == ALL - without_pixels


@pytest.mark.parametrize("name", SPOILED)
def test_off_is_silent(name: str) -> None:
    changes, rows = SPOILED[name]
    checked = check(spoiled(changes), only(name, "off"))
    assert checked.findings.findings == ()
    without_pixels = ids(*rows) if name == "unreadable" else set()
    assert kept_ids(checked) == ALL - without_pixels
    assert f"Not checked (off): {', '.join(SPOILED)}" in checked.page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "image-02"}, "image_ids that occur twice"),
        ({"image_id": None}, "rows without an image_id"),
        ({"path": None}, "rows without a path"),
        ({"sha256": "abc"}, "sha256 that is not 64 hex digits"),
        ({"official_split": "holdout"}, "official_split other than"),
        ({"width": 0}, "width that is not positive"),
        ({"height": -3}, "height that is not positive"),
    ],
)
def test_structure_is_always_an_error(change: dict, message: str) -> None:
    silent = ValidateConfig(**dict.fromkeys(SPOILED, "off"))
    with pytest.raises(ChecksFailed, match="check structure failed") as stopped:
        check(spoiled({3: change}), silent)
    assert message in stopped.value.message


def test_a_missing_group_is_an_error_only_where_none_is_expected() -> None:
    manifest = spoiled({3: {"group": None}})
    assert check(manifest, ValidateConfig()).kept.column("group").tolist().count(None) == 1  # for `split` to judge
    card = manifest.card.model_copy(update={"grouped_by": "near-duplicates"})
    with pytest.raises(ChecksFailed, match="rows without a group"):
        check(replace(manifest, card=card), ValidateConfig())


def test_unknown_groups_are_never_one_group() -> None:
    unknown = {number: {"group": None} for number in range(6)}
    kept = check(spoiled(unknown | {4: COPY_OF_2 | {"group": None}}), ValidateConfig()).kept
    assert set(kept.take(range(5)).column("group")) == {None}
    assert len(set(kept.groups())) == 5 + (IMAGES - 6) // 2


def test_the_smallest_id_of_exact_copies_stays_even_when_rows_are_shuffled() -> None:
    changes, _ = SPOILED["duplicate"]
    manifest = spoiled(changes)
    shuffled = manifest.take(np.random.default_rng(3).permutation(len(manifest)))
    for rows in (manifest, shuffled):
        checked = check(rows, ValidateConfig())
        assert kept_ids(checked) == ALL - ids(4, 6)
        assert finding(checked, "duplicate").examples == ("image-04 (copy_of image-02)", "image-06 (copy_of image-02)")


def test_groups_that_share_a_dropped_copy_are_joined() -> None:
    checked = check(spoiled({4: COPY_OF_2}), ValidateConfig())
    group = dict(zip(checked.kept.column("image_id"), checked.kept.column("group"), strict=True))
    assert group["image-05"] == group["image-02"] == "patient-01"  # image-04, of patient-02, was a copy
    assert group["image-06"] == "patient-03"


def test_another_copy_stays_where_the_first_is_left_out_for_another_reason() -> None:
    near = f"{int(good_rows()[2]['phash'], 16) ^ 1:016x}"
    manifest = spoiled({2: {"width": 20, "height": 20}, 4: {"phash": near}})
    checked = check(manifest, ValidateConfig(near_duplicate="warning", tiny="warning"))
    assert kept_ids(checked) == ALL - ids(2)


def test_files_that_are_no_images_are_nobodys_copies() -> None:
    error_page = NO_PIXELS | {"sha256": "e" * 64}
    checked = check(spoiled({2: error_page, 4: error_page, 7: error_page}), ValidateConfig())
    assert [item.check for item in checked.findings.findings] == ["unreadable"]
    assert len(set(checked.kept.column("group"))) == IMAGES // 2


def test_blank_images_join_no_groups() -> None:
    black = {"std": 0.0, "sha256": "b" * 64, "phash": "8" + "0" * 15}
    checked = check(spoiled({2: black, 4: black}), ValidateConfig())
    assert kept_ids(checked) == ALL - ids(2, 4)
    assert len(set(checked.kept.column("group"))) == IMAGES // 2


def test_an_exact_copy_is_no_near_duplicate_beside() -> None:
    near = {"phash": f"{int(good_rows()[2]['phash'], 16) ^ 1:016x}"}
    checked = check(spoiled({4: near, 6: near | {"sha256": f"{4:064x}"}, 8: COPY_OF_2}), ValidateConfig())
    assert (finding(checked, "duplicate").count, finding(checked, "near_duplicate").count) == (2, 1)
    assert finding(checked, "near_duplicate").examples == ("image-04 (near_copy_of image-02)",)


def test_unknown_labels_are_neither_conflict_nor_impossible() -> None:
    unknown = {"finding.clear": None, "finding.nodule": None}
    checked = check(spoiled({3: COPY_OF_2 | unknown, 8: unknown}), ValidateConfig())
    assert [item.check for item in checked.findings.findings] == ["duplicate"]
    assert kept_ids(checked) == ALL - ids(3)


def test_two_known_labels_beside_an_unknown_one_are_impossible() -> None:
    three = HeadSpec(kind="exclusive", name="finding", labels=("clear", "nodule", "mass"))
    rows = good_rows((three,))
    rows[5]["finding.mass"] = 1
    rows[3].update({"finding.clear": 1, "finding.nodule": 1, "finding.mass": None})
    rows[4].update({"finding.clear": 0, "finding.nodule": 0, "finding.mass": None})
    rows[5].update({"finding.clear": 0, "finding.nodule": 0})
    checked = check(manifest_of(rows, (three,)), ValidateConfig(label_impossible="warning"))
    assert kept_ids(checked) == ALL - ids(3)


def test_independent_labels_need_not_add_up() -> None:
    manifest = spoiled({1: {"signs.mass": 1, "signs.edema": 1}, 2: {"signs.mass": 0, "signs.edema": 0}}, (SIGNS,))
    assert check(manifest, ValidateConfig()).findings.findings == ()


def test_a_mismatched_mask_is_unset_and_its_image_kept() -> None:
    changes, _ = SPOILED["mask_mismatched"]
    checked = check(spoiled(changes), ValidateConfig())
    rows = {row["image_id"]: row["mask_error"] for row in checked.kept.table.to_pylist()}
    assert rows["image-04"] == "mask of 256x128 does not fit the image of 299x299"
    assert rows["image-05"] == "cannot be read"
    assert rows["image-06"] is None
    assert checked.kept.has_mask().sum() == IMAGES - 2


def test_rounding_of_a_mask_is_no_mismatch() -> None:
    manifest = spoiled({4: {"width": 2048, "height": 2500, "mask_width": 209, "mask_height": 256}})
    assert check(manifest, ValidateConfig()).findings.findings == ()


def test_masks_are_not_asked_of_a_dataset_without_them() -> None:
    manifest = spoiled({4: {"mask_path": None, "mask_fraction": 0.0}}, (FINDING,))
    strict = ValidateConfig(mask_missing="error", mask_empty="error")
    assert check(manifest, strict).findings.findings == ()


def test_losing_too_much_stops() -> None:
    blank = {number: {"std": 0.0} for number in range(6)}
    config = ValidateConfig(max_quarantined=0.2)
    with pytest.raises(ChecksFailed, match=r"6 of 24 images would be left out \(blank 6\)") as stopped:
        check(spoiled(blank), config)
    assert "max_quarantined" in stopped.value.hint
    assert check(spoiled(blank), ValidateConfig(max_quarantined=0.25)).findings.quarantined == 6


def test_a_class_without_images_stops() -> None:
    blank = {number: {"std": 0.0} for number in range(1, IMAGES, 2)}
    with pytest.raises(ChecksFailed, match=r"no image is left of finding.nodule \(before checks: finding.nodule 12\)"):
        check(spoiled(blank), ValidateConfig(**TOLERANT))


def test_no_usable_mask_stops_where_masks_are_all_there_is() -> None:
    broken = {number: {"mask_error": "cannot be read"} for number in range(IMAGES)}
    with pytest.raises(ChecksFailed, match="no image is left of mask"):
        check(spoiled(broken, (LUNG,)), ValidateConfig())


def test_an_empty_manifest_stops() -> None:
    with pytest.raises(ChecksFailed, match="has no images"):
        check(manifest_of([]), ValidateConfig())


def test_what_the_listing_found_is_told_and_an_error_of_it_stops() -> None:
    stray = Finding(check="stray_file", severity="info", message="no part", count=2, examples=("a",))
    manifest = replace(manifest_of(good_rows()), findings=(stray,))
    assert check(manifest, ValidateConfig()).findings.findings == (stray,)
    wrong = stray.model_copy(update={"severity": "error"})
    with pytest.raises(ChecksFailed, match="stray_file"):
        check(replace(manifest, findings=(wrong,)), ValidateConfig())


def test_examples_are_at_most_five() -> None:
    blank = {number: {"std": 0.0} for number in range(9)}
    examples = finding(check(spoiled(blank), ValidateConfig(**TOLERANT)), "blank").examples
    assert examples == tuple(f"image-{number:02} (std 0.0)" for number in range(5))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(st.sampled_from(sorted(SPOILED)), min_size=1), st.randoms(use_true_random=False))
def test_kept_rows_are_clean_whatever_was_spoiled(names: set[str], random) -> None:
    """Checking what was kept again finds nothing of severity warning, and the order of rows does not matter."""
    config = ValidateConfig(label_conflict="warning", label_impossible="warning", **TOLERANT)
    changes: dict[int, dict] = {}
    for name in sorted(names):
        for number, change in SPOILED[name][0].items():
            changes.setdefault(number, {}).update(change)
    manifest = spoiled(changes)
    checked = check(manifest, config)
    order = list(range(len(manifest)))
    random.shuffle(order)
    assert kept_ids(check(manifest.take(order), config)) == kept_ids(checked)
    again = check(checked.kept, config)
    assert again.findings.quarantined == 0
    assert {item.check for item in again.findings.of("warning")} <= {"mask_mismatched"}


# -- the page ------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Tags, and what each would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched.extend(value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"})
        if tag in {"script", "link", "iframe", "object", "img"}:
            self.fetched.append(tag)
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_self_contained_escaped_and_exact() -> None:
    changes, _ = SPOILED["duplicate"]
    manifest = spoiled(changes | {9: {"sex": "<script>alert(1)</script>"}, 10: NO_PIXELS})
    checked = check(manifest, ValidateConfig())
    page = _Page()
    page.feed(checked.page)
    text = " ".join(page.text)
    assert page.open == [] and page.fetched == []
    assert not re.search(r"https?://|@import|url\(", checked.page)
    assert "<script" not in checked.page and "<script>alert(1)</script>" in text
    assert "24 images checked, 3 left out, 21 kept" in " ".join(text.split())
    assert "ExpectColumnValuesToBeUnique" in text and "Great Expectations 1." in text
    assert checked.page.count("<svg") == 4
    assert text.count("not met") == 1 + 3  # the sentence, then duplicate, metadata and unreadable


def test_the_page_is_the_same_each_time() -> None:
    assert (
        check(manifest_of(good_rows()), ValidateConfig()).page == check(manifest_of(good_rows()), ValidateConfig()).page
    )


def test_importing_checks_does_not_import_great_expectations() -> None:
    code = "import sys, medflow.checks; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0


def test_a_large_manifest_is_checked_in_seconds() -> None:

    row, count = good_rows()[0], 20_000
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, count)
    rows = [
        row
        | {"image_id": f"{n:06}", "group": f"{n:06}", "sha256": f"{n:064x}", "phash": f"{hashes[n]:016x}"}
        | {"finding.clear": n % 2, "finding.nodule": 1 - n % 2, "pixel_row": n}
        for n in range(count)
    ]
    manifest = manifest_of(rows)
    checked = check(manifest, ValidateConfig())
    assert checked.findings.findings == ()

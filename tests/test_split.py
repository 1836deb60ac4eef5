"""No group, file or picture in two parts, ever; proportions; sticky roles; official lists; the full NIH table."""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.config.sections import SplitConfig
from medflow.duplicates import near_duplicate_groups
from medflow.errors import SplitError
from medflow.placement import ROLES, loosens, once_test, placement_of, strictest
from medflow.records import MANIFEST_COLUMNS, DatasetCard, Generated, HeadSpec, Manifest, Placement, Source, Split
from medflow.split import split, split_summary

SAMPLES = Path(os.environ.get("MEDFLOW_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
CLASSES = HeadSpec(kind="exclusive", name="finding", labels=("a", "b", "c"))
SIGNS = HeadSpec(kind="independent", name="signs", labels=("p", "q", "r", "s"))
LUNG = HeadSpec(kind="mask", name="lung", labels=("lung",))


def manifest_of(columns: dict[str, list], heads: tuple[HeadSpec, ...]) -> Manifest:
    """A manifest with only these columns filled; ids, hashes and groups are given where none are."""
    count = len(next(iter(columns.values())))
    ids = [f"i{number:06}" for number in range(count)]
    given_ = {"image_id": ids, "path": ids, "group": ids, "sha256": [f"{n:064x}" for n in range(count)]} | columns
    kinds = dict(MANIFEST_COLUMNS) | {name: "int8" for head in heads for name in head.columns()}
    arrays = {
        name: pyarrow.array(given_.get(name, [None] * count), type=pyarrow.type_for_alias(kind))
        for name, kind in kinds.items()
    }
    card = DatasetCard(name="sample", title="Sample", heads=heads, channels=1, grouped_by="patient")
    return Manifest(card=card, table=pyarrow.table(arrays))


def labels_of(classes: list[int | None]) -> dict[str, list]:
    """Label columns of the exclusive head; None is unknown."""
    return {
        name: [None if value is None else int(value == place) for value in classes]
        for place, name in enumerate(CLASSES.columns())
    }


def classed(classes: list[int | None], **columns: list) -> Manifest:
    return manifest_of(labels_of(classes) | columns, (CLASSES,))


def parts_of(result: Split) -> dict[str, Manifest]:
    return dict(zip(ROLES, (result.train, result.val, result.test), strict=True))


def roles_of(result: Split) -> dict[str, str]:
    return {image_id: role for role, part in parts_of(result).items() for image_id in part.column("image_id")}


def shares(result: Split, stratum: str = "all") -> dict[str, float]:
    return {item.role: item.share for item in split_summary(result) if item.stratum == stratum}


def assert_nothing_shared(manifest: Manifest, result: Split, bits: int) -> None:
    """By definition, on the manifest's own columns: every row once, and no key under two roles."""
    role = roles_of(result)
    assert Counter(image_id for part in parts_of(result).values() for image_id in part.column("image_id")) == Counter(
        manifest.column("image_id")
    )
    near = near_duplicate_groups(manifest.column("phash").tolist(), bits)
    for key in (manifest.column("group"), manifest.column("sha256"), near):
        seen: dict[object, set[str]] = {}
        for value, image_id in zip(key.tolist(), manifest.column("image_id"), strict=True):
            if value is not None:
                seen.setdefault(value, set()).add(role[image_id])
        assert all(len(roles) == 1 for roles in seen.values())


# -- properties ----------------------------------------------------------------------------------

BASES = (0x5A3C_96F0_1E87_D24B, 0x0F0F_1234_89AB_CDEF, 0xFFFF_0000_AAAA_5555)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Small manifests in which groups, bytes and pictures are shared across each other; every class has singles."""
    extra = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))))
    singles = [(number % 3, 100 + number, 100 + number, None) for number in range(36)]
    rows = [*singles, *extra]
    hashes = [None if place is None else f"{BASES[place // 2] ^ (place % 2):016x}" for *_, place in rows]
    return classed(
        [label for label, *_ in rows],
        group=[f"g{group}" for _, group, _, _ in rows],
        sha256=[f"{digest:064x}" for _, _, digest, _ in rows],
        phash=hashes,
        official_split=draw(
            st.lists(st.sampled_from(["train", "val", "test", None]), min_size=len(rows), max_size=len(rows)).filter(
                lambda roles: {"train", "test"} <= set(roles)
            )
        ),
    )


@settings(max_examples=60, deadline=None)
@given(manifests(), st.integers(0, 3), st.booleans())
def test_no_overlap_ever(manifest: Manifest, seed: int, official: bool) -> None:
    config = SplitConfig(seed=seed, official=official)
    try:
        result = split(manifest, Placement(), config)
    except SplitError as refused:
        assert official and "is not in every part" in refused.message  # lists may lack a class; a free split may not
        return
    assert_nothing_shared(manifest, result, config.near_duplicate_bits)


@settings(max_examples=40, deadline=None)
@given(manifests(), st.randoms(use_true_random=False), st.booleans())
def test_order_of_rows_does_not_matter(manifest: Manifest, random, placed: bool) -> None:
    roles = dict.fromkeys(sorted(set(manifest.column("group")))[:5], "val") if placed else {}
    order = list(range(len(manifest)))
    random.shuffle(order)
    one = split(manifest, Placement(roles=roles), SplitConfig())
    other = split(manifest.take(order), Placement(roles=roles), SplitConfig())
    assert [part.digest() for part in parts_of(one).values()] == [part.digest() for part in parts_of(other).values()]


@settings(max_examples=40, deadline=None)
@given(manifests(), st.dictionaries(st.integers(0, 9).map("g{}".format), st.sampled_from(ROLES)))
def test_placed_groups_keep_their_role_or_go_to_a_stricter_one(manifest: Manifest, placed: dict[str, str]) -> None:
    result = split(manifest, Placement(roles=placed), SplitConfig())
    role = roles_of(result)
    assert_nothing_shared(manifest, result, 3)
    for image_id, group in zip(manifest.column("image_id"), manifest.column("group"), strict=True):
        if group in placed:
            assert ROLES.index(role[image_id]) >= ROLES.index(placed[group])


@settings(max_examples=30, deadline=None)
@given(manifests(), st.integers(0, 3))
def test_a_split_placed_again_is_the_same(manifest: Manifest, seed: int) -> None:
    first = split(manifest, Placement(), SplitConfig())
    again = split(manifest, placement_of(manifest, first), SplitConfig(seed=seed))
    assert roles_of(again) == roles_of(first)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), *[st.sampled_from([0, 0, 1, None])] * 4),
        min_size=60,
        max_size=120,
    )
)
def test_every_label_is_in_every_part_or_it_is_said_which_is_not(rows: list[tuple]) -> None:
    columns = {name: [row[1 + place] for row in rows] for place, name in enumerate(SIGNS.columns())}
    manifest = manifest_of(columns | {"group": [f"g{row[0]}" for row in rows]}, (SIGNS,))
    groups = {name: {row[0] for row, value in zip(rows, columns[name], strict=True) if value == 1} for name in columns}
    scarce = [name for name, members in groups.items() if len(members) < 3]
    if scarce:
        with pytest.raises(SplitError, match=f"class {scarce[0]} .* needs at least 3 groups"):
            split(manifest, Placement(), SplitConfig())
        return
    result = split(manifest, Placement(), SplitConfig())
    assert_nothing_shared(manifest, result, 3)
    for part in parts_of(result).values():
        assert (np.nansum(part.targets(SIGNS), axis=0) > 0).all()


# -- proportions ---------------------------------------------------------------------------------


def test_single_images_are_divided_to_the_image() -> None:
    """The class totals of the COVID-19 radiography database, 70/15/15: within one image of exact."""
    totals = (3616, 6012, 1345)
    result = split(classed(list(np.repeat([0, 1, 2], totals))), Placement(), SplitConfig())
    images = {(item.role, item.stratum): item.images for item in split_summary(result)}
    for total, name in zip(totals, CLASSES.columns(), strict=True):
        for role, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
            assert abs(images[role, name] - share * total) < 1


def test_groups_of_many_sizes_keep_shares_in_every_class_and_are_spread_evenly() -> None:
    rng = np.random.default_rng(5)
    sizes = np.minimum(rng.geometric(0.3, 900), 30)
    group = np.repeat(np.arange(900), sizes)
    classes = np.repeat(rng.choice([0, 1, 2], 900, p=[0.7, 0.25, 0.05]), sizes)
    result = split(classed(classes.tolist(), group=[f"g{n}" for n in group]), Placement(), SplitConfig())
    for stratum in ("all", *CLASSES.columns()):
        found = shares(result, stratum)
        assert abs(found["train"] - 0.70) < 0.02 and abs(found["val"] - 0.15) < 0.02
    per_group = {item.role: item.images / item.groups for item in split_summary(result) if item.stratum == "all"}
    assert max(per_group.values()) / min(per_group.values()) < 1.15  # large patients are in every part


def test_fractions_are_those_of_the_settings() -> None:
    result = split(classed([0, 1, 2] * 100), Placement(), SplitConfig(train=0.5, val=0.2, test=0.3))
    assert shares(result) == pytest.approx({"train": 0.5, "val": 0.2, "test": 0.3}, abs=0.01)


def test_seeds_differ_and_each_repeats() -> None:
    manifest = classed([0, 1, 2] * 40)
    splits = [roles_of(split(manifest, Placement(), SplitConfig(seed=seed))) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_unknown_labels_are_spread_and_not_required() -> None:
    manifest = classed([0, 1, 2] * 40 + [None] * 80)
    found = shares(split(manifest, Placement(), SplitConfig()), "finding.(unknown)")
    assert found == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.02)


def test_datasets_of_masks_alone_are_stratified_by_mask() -> None:
    masks = [f"m{n}" if n % 10 == 0 else None for n in range(200)]
    result = split(manifest_of({"mask_path": masks}, (LUNG,)), Placement(), SplitConfig())
    assert shares(result, "lung") == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15})
    with pytest.raises(SplitError, match="class lung"):
        split(manifest_of({"mask_path": ["m", "m", *[None] * 50]}, (LUNG,)), Placement(), SplitConfig())


def test_few_masks_beside_labels_reach_every_part_where_they_can() -> None:
    masks = [f"m{n}" if n in (0, 25, 50) else None for n in range(75)]
    manifest = manifest_of(labels_of([0] * 25 + [1] * 25 + [2] * 25) | {"mask_path": masks}, (CLASSES, LUNG))
    result = split(manifest, Placement(), SplitConfig())
    assert [int(part.has_mask().sum()) for part in parts_of(result).values()] == [1, 1, 1]


# -- groups --------------------------------------------------------------------------------------


def test_group_bytes_and_picture_join_transitively_under_the_smallest_name() -> None:
    groups = [f"g{n:02}" for n in range(30)]
    groups[10] = "g09"  # g09 … bytes … g11 … picture … g12
    digests = [f"{n:064x}" for n in range(30)]
    digests[11] = digests[10]
    hashes: list[str | None] = [None] * 30
    hashes[11], hashes[12] = f"{BASES[0]:016x}", f"{BASES[0] ^ 0b111:016x}"
    manifest = classed([0, 1, 2] * 10, group=groups, sha256=digests, phash=hashes)
    result = split(manifest, Placement(), SplitConfig())
    merged = {row["image_id"]: row["group"] for part in parts_of(result).values() for row in part.table.to_pylist()}
    assert {merged[f"i{n:06}"] for n in (9, 10, 11, 12)} == {"g09"}
    assert len(set(merged.values())) == 30 - 3
    apart = split(manifest, Placement(), SplitConfig(near_duplicate_bits=2))
    assert len({group for part in parts_of(apart).values() for group in part.column("group")}) == 30 - 2


def test_rows_without_a_group_are_refused() -> None:
    with pytest.raises(SplitError, match="1 of 30 images have no group"):
        split(classed([0, 1, 2] * 10, group=[None, *map(str, range(29))]), Placement(), SplitConfig())


def test_the_refusal_names_the_table_that_tells_groups() -> None:
    manifest = classed([0, 1, 2] * 10, group=[None] * 30)
    card = manifest.card.model_copy(update={"metadata": "lesions.csv", "grouped_by": "lesion"})
    with pytest.raises(SplitError, match=r"30 of 30 .* one lesion must lie in one part") as caught:
        split(replace(manifest, card=card), Placement(), SplitConfig())
    assert "pass lesions.csv with `--metadata FILE`" in caught.value.hint
    assert "split.allow_missing_groups=true" in caught.value.hint


def test_missing_groups_are_allowed_on_request_and_told() -> None:
    group = [None] * 27 + ["g1", "g1", "g1"]
    manifest = classed([0, 1, 2] * 10, group=group, phash=[None, *["0f1e2d3c4b5a6978"] * 2, *[None] * 27])
    config = SplitConfig(allow_missing_groups=True)
    result = split(manifest, Placement(), config)
    roles = roles_of(result)
    assert roles["i000001"] == roles["i000002"]  # near-duplicates
    assert roles["i000027"] == roles["i000028"] == roles["i000029"]
    for part in parts_of(result).values():
        assert None not in part.column("group")
        [finding] = [item for item in part.findings if item.check == "group_unknown"]
        assert (finding.severity, finding.count, len(finding.examples)) == ("warning", 27, 5)
    placement = placement_of(manifest, result)
    assert roles_of(split(manifest, placement, config)) == roles
    assert placement.roles["i000004"] == roles["i000004"] and placement.roles["g1"] == roles["i000027"]


def test_a_group_that_becomes_known_takes_the_strictest_role_of_its_images() -> None:
    config = SplitConfig(allow_missing_groups=True)
    before = classed([0, 1, 2] * 20, group=[None] * 60)
    first = split(before, Placement(), config)
    after = classed([0, 1, 2] * 20, group=[f"g{n // 2}" for n in range(60)])
    roles = roles_of(split(after, placement_of(before, first), config))
    assert {image for image, role in roles_of(first).items() if role == "test"} <= {
        image for image, role in roles.items() if role == "test"
    }


def test_allowing_missing_groups_says_nothing_where_none_is_missing() -> None:
    result = split(classed([0, 1, 2] * 10), Placement(), SplitConfig(allow_missing_groups=True))
    assert result.train.findings == ()


def test_a_class_in_two_groups_is_named_with_its_counts() -> None:
    manifest = classed([0, 1] * 20 + [2] * 5, group=[f"g{n}" for n in range(40)] + ["x", "x", "x", "y", "y"])
    with pytest.raises(SplitError, match=r"class finding.c .*5 images in 2 groups \(train \d, val \d, test \d\)"):
        split(manifest, Placement(), SplitConfig())


def test_every_class_that_lacks_groups_is_named_and_a_twin_is_told_to_be_larger() -> None:
    manifest = classed(
        [0] * 20 + [1] * 4 + [2] * 2, group=[f"g{n}" for n in range(20)] + ["x", "x", "y", "y", "z", "z"]
    )
    with pytest.raises(SplitError) as refused:
        split(manifest, Placement(), SplitConfig())
    assert "class finding.b is not in every part: 4 images in 2 groups" in refused.value.message
    assert "nor is finding.c: 2 images in 1 groups; a class needs at least 3 groups" in refused.value.message
    assert "add images of other patients" in refused.value.hint
    source = Source(kind="generated", fingerprint="f", generated=Generated(images=26))
    with pytest.raises(SplitError) as refused:
        split(replace(manifest, source=source), Placement(), SplitConfig())
    assert refused.value.hint == "generate more, such as source.images=52"


def test_a_class_in_three_groups_is_in_every_part() -> None:
    manifest = classed([0, 1] * 20 + [2] * 5, group=[f"g{n}" for n in range(40)] + ["x", "x", "x", "y", "z"])
    for seed in range(5):
        result = split(manifest, Placement(), SplitConfig(seed=seed))
        assert all((part.column("finding.c") == 1).any() for part in parts_of(result).values())


# -- roles that are given ------------------------------------------------------------------------


def test_new_images_leave_old_ones_in_place_and_restore_the_shares() -> None:
    old = classed([0, 1, 2] * 60)
    first = split(old, Placement(), SplitConfig())
    grown = classed([0, 1, 2] * 100)
    second = split(grown, placement_of(old, first), SplitConfig(seed=9))
    was, now = roles_of(first), roles_of(second)
    assert {image_id: now[image_id] for image_id in was} == was
    assert shares(second) == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.01)


def test_groups_that_turn_out_to_be_one_go_to_the_strictest_role_and_are_told() -> None:
    digests = [f"{n:064x}" for n in range(60)]
    digests[1] = digests[0]
    digests[3] = digests[2]
    placed = {"i000000": "train", "i000001": "test", "i000002": "train", "i000003": "val"}
    result = split(classed([0, 1, 2] * 20, sha256=digests), Placement(roles=placed), SplitConfig())
    role = roles_of(result)
    assert role["i000000"] == role["i000001"] == "test"
    assert role["i000002"] == role["i000003"] == "val"
    told = {(item.check, item.count, item.examples) for item in result.train.findings}
    assert told == {("split_placement", 1, ("i000000",)), ("split_placement", 1, ("i000002",))}


def test_a_link_that_is_gone_next_time_is_remembered() -> None:
    """g1 was tested as part of g0's group; without g0's image it must not move to train."""
    digests = [f"{n:064x}" for n in range(60)]
    digests[1] = digests[0]
    manifest = classed([0, 1, 2] * 20, sha256=digests)
    first = split(manifest, Placement(roles={"i000000": "test"}), SplitConfig())
    placement = placement_of(manifest, first)
    assert placement.roles["i000001"] == "test"
    without = manifest.take(np.arange(1, 60))
    assert roles_of(split(without, placement, SplitConfig(seed=4)))["i000001"] == "test"


@settings(max_examples=30, deadline=None)
@given(manifests(), st.randoms(use_true_random=False), st.integers(0, 3))
def test_an_image_once_in_test_is_never_learnt_from_however_it_is_known(manifest: Manifest, random, seed: int) -> None:
    """Of group, id and bytes any two may be others next time, or unknown, and rows may go."""
    first = split(manifest, Placement(), SplitConfig())
    later = manifest.take([*range(36), *(row for row in range(36, len(manifest)) if random.random() < 0.7)])
    changed: dict[str, list[str | None]] = {"group": [], "image_id": [], "sha256": []}
    for number, row in enumerate(later.table.to_pylist()):
        other = {"group": random.choice([None, f"new{number}"]), "image_id": f"new{number}", "sha256": None}
        kept = random.choice(sorted(changed))
        for name in changed:
            changed[name].append(row[name] if name == kept else other[name])
    table = later.table
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, pyarrow.array(values, type=pyarrow.string()))
    renamed = replace(later, table=table)
    known = placement_of(manifest, first)
    again = split(renamed, known, SplitConfig(seed=seed, allow_missing_groups=True))
    before, after = roles_of(first), roles_of(again)
    for old, new in zip(later.column("image_id"), changed["image_id"], strict=True):
        assert ROLES.index(after[new]) >= ROLES.index(before[old])
    assert not loosens(placement_of(renamed, again), known)


def test_a_row_that_two_placements_claim_goes_to_the_stricter_and_is_told() -> None:
    placed = Placement(roles={"i000000": "train"}, contents={f"{0:064x}": "test"})
    result = split(classed([0, 1, 2] * 20), placed, SplitConfig())
    assert roles_of(result)["i000000"] == "test"
    (told,) = result.train.findings
    assert (told.check, told.severity, told.count, told.examples) == ("split_placement", "warning", 1, ("i000000",))


def test_rows_that_were_test_under_other_settings_are_counted() -> None:
    manifest = classed([0, 1, 2] * 40)
    first = split(manifest, Placement(), SplitConfig())
    fresh = Placement(once_test=once_test(first.test))
    again = split(manifest, fresh, SplitConfig(seed=1))
    assert roles_of(again) == roles_of(split(manifest, Placement(), SplitConfig(seed=1)))
    now = roles_of(again)
    moved = [image for image, role in roles_of(first).items() if role == "test" and now[image] != "test"]
    (told,) = again.train.findings
    assert (told.check, told.severity, told.count) == ("split_redrawn", "warning", len(moved))
    assert set(told.examples) <= set(moved)


@given(*[st.dictionaries(st.integers(0, 5).map(str), st.sampled_from(ROLES))] * 2)
def test_the_strictest_of_two_placements_loosens_neither(one: dict[str, str], other: dict[str, str]) -> None:
    first, second = Placement(roles=one, contents=other), Placement(roles=other, images=one)
    both = strictest(first, second)
    assert both == strictest(second, first)
    assert not loosens(both, first) and not loosens(both, second)
    assert set(both.roles) == {*one, *other}
    assert loosens(first, second) == (
        any(ROLES.index(one[key]) < ROLES.index(other[key]) for key in one.keys() & other)
    )


def test_what_a_placement_remembers_is_no_part_of_its_content() -> None:
    given_ = Placement(roles={"a": "train"})
    assert given_.model_copy(update={"remembered": Placement(roles={"a": "test"})}).digest() == given_.digest()
    assert Placement.model_validate_json('{"roles": {"a": "train"}}') == given_


# -- official lists ------------------------------------------------------------------------------


def lists(train: int, val: int, test: int) -> list[str]:
    return ["train"] * train + ["val"] * val + ["test"] * test


def test_official_lists_are_followed_where_val_is_large_enough() -> None:
    official = lists(200, 30, 70)
    result = split(classed([0, 1, 2] * 100, official_split=official), Placement(), SplitConfig(official=True))
    assert [len(part) for part in parts_of(result).values()] == [200, 30, 70]
    role = roles_of(result)
    assert [role[f"i{n:06}"] for n in range(300)] == official


@pytest.mark.parametrize("val", [0, 4])
def test_a_small_official_val_is_topped_up_from_train_by_group(val: int) -> None:
    official = lists(240 - val, val, 60)
    groups = [f"g{n // 2}" for n in range(300)]
    manifest = classed([0, 1, 2] * 100, official_split=official, group=groups)
    result = split(manifest, Placement(), SplitConfig(official=True))
    role = roles_of(result)
    assert {image_id for image_id, where in role.items() if where == "test"} == {f"i{n:06}" for n in range(240, 300)}
    assert {role[f"i{n:06}"] for n in range(240 - val, 240)} <= {"val"}
    assert len(result.val) == pytest.approx(240 * 0.15 / 0.85, abs=3)
    assert_nothing_shared(manifest, result, 3)


def test_topping_up_leaves_placed_groups_in_train() -> None:
    placed = {f"i{n:06}": "train" for n in range(100)}
    manifest = classed([0, 1, 2] * 100, official_split=lists(240, 0, 60))
    role = roles_of(split(manifest, Placement(roles=placed), SplitConfig(official=True)))
    assert {role[image_id] for image_id in placed} == {"train"}
    assert Counter(role.values())["val"] == pytest.approx(240 * 0.15 / 0.85, abs=2)


def test_the_rule_for_topping_up_is_half_of_the_wanted_share() -> None:
    """200 rows to learn from want 200 × 15 / 85 = 35.3 in val, so 17 are too few and 18 are enough."""
    for val, after in ((17, 35), (18, 18)):
        manifest = classed([0, 1, 2] * 100, official_split=lists(200 - val, val, 100))
        assert len(split(manifest, Placement(), SplitConfig(official=True)).val) == pytest.approx(after, abs=1)


def test_a_group_that_official_lists_cut_goes_to_test_and_is_counted() -> None:
    groups = [f"g{n}" for n in range(300)]
    groups[0] = groups[1] = groups[299]
    manifest = classed([0, 1, 2] * 100, official_split=lists(200, 30, 70), group=groups)
    result = split(manifest, Placement(), SplitConfig(official=True))
    assert len(result.test) == 72 and roles_of(result)["i000000"] == "test"
    (told,) = result.train.findings
    assert (told.check, told.count, told.examples) == ("split_official", 2, ("g299",))
    assert "test (1 groups)" in told.message


def test_official_lists_that_are_not_there_are_refused() -> None:
    with pytest.raises(SplitError, match="no official lists") as refused:
        split(classed([0, 1, 2] * 20), Placement(), SplitConfig(official=True))
    assert "split.official=false" in refused.value.hint


def test_official_lists_that_lack_a_class_are_refused() -> None:
    manifest = classed([0, 1] * 40 + [2] * 20, official_split=lists(10, 10, 60) + ["train"] * 20)
    with pytest.raises(SplitError, match=r"class finding\.c") as refused:
        split(manifest, Placement(), SplitConfig(official=True))
    assert "split.official=false" in refused.value.hint


# -- a table of full size ------------------------------------------------------------------------


def twin_of_nih(count: int = 112_120) -> Manifest:
    """As many images, patients and findings as ChestX-ray14, generated."""
    rng = np.random.default_rng(14)
    head = HeadSpec(kind="independent", name="finding", labels=tuple(f"f{n:02}" for n in range(14)))
    rates = np.geomspace(0.002, 0.18, 14)
    patients = np.sort(np.floor(30_805 * rng.random(count) ** 2).astype(int))
    columns = {name: (rng.random(count) < rate).astype(int) for name, rate in zip(head.columns(), rates, strict=True)}
    return manifest_of({name: values.tolist() for name, values in columns.items()} | _of_nih(patients, rng), (head,))


def _of_nih(patients: np.ndarray, rng: np.random.Generator) -> dict[str, list]:
    hashes = rng.integers(1, 2**64, len(patients), dtype=np.uint64)
    return {"group": [f"p{patient}" for patient in patients], "phash": [f"{value:016x}" for value in hashes]}


def real_nih() -> Manifest:
    folder = SAMPLES / "metadata_full" / "nih_chestxray14"
    if not folder.is_dir():
        pytest.skip("the complete NIH table is not here")
    with (folder / "Data_Entry_2017.csv").open(newline="") as stream:
        _, *rows = csv.reader(stream)
    test = set((folder / "test_list.txt").read_text().split())
    found = [set(row[1].split("|")) for row in rows]
    names = tuple(sorted(set().union(*found) - {"No Finding"}))
    head = HeadSpec(kind="independent", name="finding", labels=names)
    columns = {f"finding.{name}": [int(name in labels) for labels in found] for name in names}
    own = {
        "image_id": [row[0] for row in rows],
        "group": [row[3] for row in rows],
        "official_split": ["test" if row[0] in test else "train" for row in rows],
    }
    return manifest_of(columns | own, (head,))


@pytest.mark.parametrize("table", [twin_of_nih, real_nih])
def test_112120_images_are_split_within_a_thousandth(table) -> None:
    manifest = table()
    result = split(manifest, Placement(), SplitConfig())
    assert len(manifest) == 112_120 == sum(len(part) for part in parts_of(result).values())
    (head,) = manifest.card.heads
    for stratum in ("all", *head.columns()):
        found = shares(result, stratum)
        assert found == pytest.approx({"train": 0.70, "val": 0.15, "test": 0.15}, abs=0.005)


def test_the_official_nih_test_list_is_kept() -> None:
    manifest = real_nih()
    result = split(manifest, Placement(), SplitConfig(official=True))
    assert len(result.test) == 25_596
    assert set(result.test.column("official_split")) == {"test"}
    assert len(result.val) == pytest.approx(86_524 * 0.15 / 0.85, rel=0.03)
    assert result.train.findings == ()

"""What counts as seen: by id, bytes, picture or group, in either manifest, and always with its whole group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st
from test_split import classed, manifests, parts_of

from medflow.config.sections import SplitConfig
from medflow.duplicates import near_duplicate_groups
from medflow.records import Manifest, Past, Placement
from medflow.seen import past_of, unseen_of, unseen_rows
from medflow.split import split

BITS = 3


def with_column(manifest: Manifest, name: str, values: list[str | None]) -> Manifest:
    place = manifest.table.column_names.index(name)
    table = manifest.table.set_column(place, name, pyarrow.array(values, type=pyarrow.string()))
    return replace(manifest, table=table)


@settings(max_examples=30, deadline=None)
@given(manifests(), st.integers(1, 4))
def test_after_any_new_draw_what_is_left_shares_nothing_with_what_was_learnt(manifest: Manifest, seed: int) -> None:
    old = split(manifest, Placement(), SplitConfig())
    new = split(manifest, Placement(), SplitConfig(seed=seed))
    mask = unseen_rows(new.test, manifest, past_of(old.train, old.val, manifest), BITS)
    left = set(new.test.take(np.flatnonzero(mask)).column("image_id"))
    learnt = set(old.train.column("image_id")) | set(old.val.column("image_id"))
    near = near_duplicate_groups(manifest.column("phash").tolist(), BITS)
    for key in (manifest.column("image_id"), manifest.column("sha256"), manifest.column("group"), near):
        values: dict[bool, set[object]] = {True: set(), False: set()}
        for value, image_id in zip(key.tolist(), manifest.column("image_id"), strict=True):
            if image_id in left or image_id in learnt:
                values[image_id in left].add(value)
        assert not values[True] & values[False]
    # And no more is taken than must be: a group that the old draw tested whole is left.
    assert left == set(new.test.column("image_id")) & set(old.test.column("image_id"))


@settings(max_examples=20, deadline=None)
@given(manifests())
def test_a_model_saw_nothing_of_the_test_part_of_its_own_split(manifest: Manifest) -> None:
    parts = split(manifest, Placement(), SplitConfig())
    past = past_of(parts.train, parts.val, manifest)
    assert unseen_rows(parts.test, manifest, past, BITS).all()
    for seen in (parts.train, parts.val):
        assert not unseen_rows(seen, manifest, past, BITS).any()


def test_each_way_to_know_a_row_again_is_enough_and_takes_its_group() -> None:
    picture = "0f1e2d3c4b5a6978"
    rows = classed([0, 1, 2, 0], group=["a", "a", "b", "c"], phash=[picture, None, None, None])
    ways = (
        (Past(), [True] * 4),
        (Past(images=("i000001",)), [False, False, True, True]),
        (Past(contents=(f"{2:064x}",)), [True, True, False, True]),
        (Past(groups=("c",)), [True, True, True, False]),
        (Past(pictures=(f"{int(picture, 16) ^ 0b101:016x}",)), [False, False, True, True]),
        (Past(pictures=(f"{int(picture, 16) ^ 0b11110:016x}",)), [True] * 4),
    )
    for past, left in ways:
        assert unseen_rows(rows, rows, past, BITS).tolist() == left


def test_a_patient_whose_seen_image_was_left_out_since_is_seen() -> None:
    """Cleaning took the image that the model learnt from; another of the patient is a test row now, merged under b."""
    listed = classed([0, 1, 2], group=["a", "a", "c"])
    rows = with_column(listed.take([1, 2]), "group", ["0b", "c"])
    assert unseen_rows(rows, listed, Past(images=("i000000",)), BITS).tolist() == [False, True]
    assert unseen_rows(rows, listed, Past(groups=("a",)), BITS).tolist() == [False, True]


def test_the_past_knows_groups_by_their_own_and_their_merged_name() -> None:
    manifest = classed(
        [0, 1, 2] * 12, group=[f"g{n:02}" for n in range(36)], sha256=["same"] * 2 + list(map(str, range(34)))
    )
    parts = split(manifest, Placement(roles={"g00": "train"}), SplitConfig())
    assert {"g00", "g01"} <= set(past_of(parts.train, parts.val, manifest).groups)
    assert {part.column("group").tolist().count("g01") for part in parts_of(parts).values()} == {0}


def test_the_figures_count_images_and_groups() -> None:
    rows = classed([0, 1, 2, 0], group=["a", "a", "b", "c"])
    told = unseen_of(rows, rows.take([0, 1]), Past(unknown="why"))
    assert (told.test_images, told.test_groups, told.images, told.groups, told.unknown) == (4, 3, 2, 1, "why")

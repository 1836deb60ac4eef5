"""What a model was fitted on is found again: by file, by picture, by patient, and by what those share."""

from __future__ import annotations

from dataclasses import replace

import handmade
import numpy as np
import pyarrow
import pytest

from medflow.duplicates import HASH_BITS
from medflow.records import MANIFEST_COLUMNS, DatasetCard, HeadSpec, Manifest, Past
from medflow.seen import FILE, PICTURE, past_of, seen_rows
from medflow.split import merged_groups

PATIENTS = handmade.DATASET.model_copy(update={"grouped_by": "patient"})
BITS = 3


def rows(*given: tuple[str, str | None, str | None, str], card: DatasetCard = PATIENTS) -> Manifest:
    """A manifest of (image id, group, sha256, phash)."""
    known = dict(zip(("image_id", "group", "sha256", "phash"), zip(*given, strict=True), strict=True))
    table = {
        name: pyarrow.array(known.get(name, [None] * len(given)), type=pyarrow.type_for_alias(kind))
        for name, kind in MANIFEST_COLUMNS.items()
    }
    return Manifest(card=card, table=pyarrow.table(table))


def picture(number: int, turned: int = 0) -> str:
    """A perceptual hash of its own, or one that differs from it in ``turned`` bits."""
    bits = np.random.default_rng(number).integers(0, 2, HASH_BITS)
    bits[:turned] ^= 1
    return f"{int(''.join(map(str, bits)), 2):016x}"


INGESTED = rows(
    ("a", "p1", "sha-a", picture(1)),
    ("b", "p2", "sha-b", picture(2)),
    ("b again", "p2-bis", "sha-b", picture(2)),
    ("c", "p3", "sha-c", picture(3)),
    ("d", "p4", "sha-d", picture(4)),
)  # fmt: skip


def reasons(manifest: Manifest, seen: Past) -> list[str | None]:
    return seen_rows(manifest, merged_groups(manifest, BITS), seen, BITS).tolist()  # type: ignore[no-any-return]


@pytest.fixture
def seen() -> Past:
    """a and b were learnt from, c stopped the learning, d is a test row; the copy of b was left out by checks."""
    return past_of(INGESTED.take([0, 1]), INGESTED.take([3]), INGESTED)


def test_what_is_known_is_of_training_and_validation_rows_alone(seen):
    assert (len(seen.images), seen.contents) == (3, ("sha-a", "sha-b", "sha-c"))
    assert seen.pictures == tuple(sorted(map(picture, (1, 2, 3))))
    assert set(seen.names) == {"p1", "p2", "p3", "p2-bis"}, "and the patient whose only image was a copy of one of them"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("new", "q", "sha-a", picture(9)), FILE),
        (("new", "q", "sha-new", picture(3)), PICTURE),
        (("new", "q", "sha-new", picture(3, turned=BITS)), PICTURE),
        (("new", "p3", "sha-new", picture(9)), "the same patient as in the training"),
        (("new", "p2-bis", "sha-new", picture(9)), "the same patient as in the training"),
        (("new", "q", "sha-new", picture(3, turned=20)), None),
        (("new", "p4", "sha-d", picture(4)), None),
        (("a", "q", "sha-new", picture(9)), None),
        (("new", None, None, picture(9)), None),
    ],
)
def test_a_row_that_shows_what_was_seen_is_left_out_and_no_other(seen, row, reason):
    assert reasons(rows(row), seen) == [reason]


def test_the_other_images_of_a_patient_with_a_seen_image_go_too(seen):
    found = reasons(
        rows(
            ("1", "new patient", "sha-a", picture(11)),
            ("2", "new patient", "sha-2", picture(12)),
            ("3", "another", "sha-3", picture(12, turned=1)),
            ("4", "third", "sha-4", picture(13)),
        ),
        seen,
    )
    assert found == [FILE, *["the same patient as such an image"] * 2, None]


def test_an_image_that_is_its_own_group_is_not_told_by_its_name():
    """Two archives may both hold `1.png`, which makes nobody the same patient."""
    card = handmade.DATASET
    before = rows(("1.png", "1.png", "s1", picture(1)), ("2.png", "2.png", "s2", picture(2)), card=card)
    seen = past_of(before, before.take([]), before)
    assert seen.names == ()
    assert reasons(rows(("1.png", "1.png", "s9", picture(9)), card=card), seen) == [None]


def test_names_can_be_left_out_of_it(seen):
    row = rows(("new", "p3", "sha-new", picture(9)))
    assert reasons(row, seen.without_names()) == [None]
    copy = rows(("new", "p3", "sha-c", picture(9)))
    assert reasons(copy, seen.without_names()) == [FILE]


def test_a_manifest_without_a_head_is_enough():
    head = HeadSpec(kind="mask", name="lung", labels=("lung",))
    bare = replace(INGESTED, card=PATIENTS.model_copy(update={"heads": (head,)}))
    assert past_of(bare, bare.take([]), bare).images == ("a", "b", "b again", "c", "d")

"""Near-duplicate clusters against a plain search of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.duplicates import BANDED_BITS, FEATURELESS_BITS, near_duplicate_groups
from medflow.errors import DataError

BASE = 0x5A3C_96F0_1E87_D24B


def text(value: int) -> str:
    return f"{value:016x}"


def flipped(value: int, bits: set[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def featureless(value: int) -> bool:
    return not FEATURELESS_BITS < value.bit_count() < 64 - FEATURELESS_BITS


def all_pairs(phash: list[str | None], bits: int) -> list[int]:
    """The same clusters by brute force and a textbook union-find."""
    parent = list(range(len(phash)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for left, one in enumerate(phash):
        for right, other in enumerate(phash[:left]):
            if one is None or other is None or featureless(int(one, 16)):
                continue
            if (int(one, 16) ^ int(other, 16)).bit_count() <= bits and not featureless(int(other, 16)):
                parent[root(left)] = root(right)
    first: dict[int, int] = {}
    return [first.setdefault(root(node), len(first)) for node in range(len(phash))]


near_base = st.sets(st.integers(0, 63), max_size=8).map(lambda bits: text(flipped(BASE, bits)))
anything = st.integers(0, 2**64 - 1).map(text)


@given(st.lists(st.one_of(near_base, anything, st.none()), max_size=30), st.integers(0, 16))
def test_clusters_are_those_of_all_pairs(phash: list[str | None], bits: int) -> None:
    clusters = near_duplicate_groups(phash, bits)
    assert clusters.dtype == np.int64
    assert clusters.tolist() == all_pairs(phash, bits)


@given(st.lists(st.one_of(near_base, st.none()), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_clusters_do_not_depend_on_the_order_of_rows(phash: list[str | None], random) -> None:
    order = list(range(len(phash)))
    random.shuffle(order)
    clusters = near_duplicate_groups(phash, 3)
    moved = near_duplicate_groups([phash[row] for row in order], 3)
    together = clusters[:, None] == clusters
    assert (together[np.ix_(order, order)] == (moved[:, None] == moved)).all()


@pytest.mark.parametrize("bits", [1, 3, BANDED_BITS, BANDED_BITS + 1, 16])
def test_the_limit_is_met_exactly(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for _ in range(50):
        places = rng.permutation(64)
        inside = text(flipped(BASE, set(places[:bits].tolist())))
        outside = text(flipped(BASE, set(places[: bits + 1].tolist())))
        assert near_duplicate_groups([text(BASE), inside], bits).tolist() == [0, 0]
        assert near_duplicate_groups([text(BASE), outside], bits).tolist() == [0, 1]


def test_chains_are_one_cluster() -> None:
    chain = [text(flipped(BASE, set(range(length)))) for length in range(0, 30, 3)]
    assert set(near_duplicate_groups(chain, 3)) == {0}
    assert near_duplicate_groups([chain[0], chain[-1]], 3).tolist() == [0, 1]


def test_images_without_a_hash_or_structure_are_alone() -> None:
    blank = ["0" * 16, "0" * 16, "8" + "0" * 15, "f" * 16, "f" * 16, None, None]
    assert near_duplicate_groups(blank, 3).tolist() == list(range(7))


def test_nothing_is_nothing() -> None:
    assert near_duplicate_groups([], 3).tolist() == []
    assert near_duplicate_groups([None], 3).tolist() == [0]


@pytest.mark.parametrize("wrong", ["abc", "x" * 16, "0x" + "1" * 14, "1" * 17, ""])
def test_what_is_no_hash_is_refused(wrong: str) -> None:
    with pytest.raises(DataError, match="is no perceptual hash"):
        near_duplicate_groups([wrong], 3)


@pytest.mark.parametrize("prototypes", [112_120, 20, 1])
def test_a_large_dataset(prototypes: int) -> None:
    """All different; crowded around few pictures, as radiographs are; and 112,120 times one picture."""
    rng = np.random.default_rng(0)
    count = 112_120
    bases = rng.integers(0, 2**64, prototypes, dtype=np.uint64)
    noise = np.packbits(rng.random((count, 64)) < (0.15 if prototypes > 1 else 0.0), axis=1).view(np.uint64)[:, 0]
    phash = [text(value) for value in (bases[rng.integers(0, prototypes, count)] ^ noise).tolist()]
    clusters = near_duplicate_groups(phash, 3)
    assert len(clusters) == count

"""Placing groups into parts: whole, fixed where fixed, and with every required stratum where that is possible."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medflow.stratify import FREE, lacking, place

FRACTIONS = (0.7, 0.15, 0.15)


def all_free(groups: int) -> np.ndarray:
    return np.full(groups, FREE)


def test_a_part_that_the_first_pass_leaves_without_a_class_is_repaired() -> None:
    """The two groups of the scarce stratum are placed first, and what is left cannot fill all parts by itself."""
    counts = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 1, 1]])
    required = np.array([False, True, True])
    parts = place(counts, np.ones(4, dtype=int), FRACTIONS, fixed=all_free(4), required=required, seed=0)
    assert not lacking(parts, counts, 3)[:, required].any()


def test_what_cannot_be_spread_is_told_as_lacking() -> None:
    """Four strata, each in three of four groups: two groups must share a part, and a stratum holds both."""
    counts = 1 - np.eye(4, dtype=int)
    required = np.ones(4, dtype=bool)
    parts = place(counts, np.ones(4, dtype=int), FRACTIONS, fixed=all_free(4), required=required, seed=0)
    assert set(parts.tolist()) == {0, 1, 2}
    assert lacking(parts, counts, 3).any()


@given(arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=st.integers(0, 5)), st.data())
def test_every_group_has_a_part_and_fixed_ones_keep_theirs(counts: np.ndarray, data: st.DataObject) -> None:
    counts = np.concatenate([counts, (counts.sum(axis=1) == 0)[:, None].astype(np.int64)], axis=1)
    groups = len(counts)
    fixed = np.array(data.draw(st.lists(st.sampled_from([FREE, 0, 1, 2]), min_size=groups, max_size=groups)))
    required = (counts > 0).sum(axis=0) >= 3
    arguments = {"fixed": fixed, "required": required, "seed": 3}
    parts = place(counts, counts.max(axis=1), FRACTIONS, **arguments)
    assert parts.min() >= 0 and parts.max() <= 2
    assert (parts[fixed != FREE] == fixed[fixed != FREE]).all()
    assert (parts == place(counts, counts.max(axis=1), FRACTIONS, **arguments)).all()


def test_one_huge_group_goes_where_it_fits() -> None:
    counts = np.array([[60], *[[1]] * 40])
    parts = place(counts, counts[:, 0], FRACTIONS, fixed=all_free(41), required=np.array([True]), seed=0)
    images = [int(counts[parts == part].sum()) for part in range(3)]
    assert parts[0] == 0 and images == [70, 15, 15]

"""The bootstrap: by group, from a seed, honest in coverage, and fast."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow import bootstrap, metrics
from medflow.records import HeadSpec

GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)


ALL = np.ones(3000, dtype=bool)


def mean_of(values: np.ndarray):
    return lambda weights: (values @ weights / weights.sum(axis=0))[None]


@given(GROUPS, st.integers(1, 300), st.integers(0, 99))
def test_groups_are_drawn_whole_and_as_many_as_there_are(groups, count, seed):
    weights = np.concatenate(list(bootstrap.resamples(np.array(groups), count, seed)), axis=1)
    assert weights.shape == (len(groups), count)
    names = sorted(set(groups))
    first = [groups.index(name) for name in names]
    assert (weights[first].sum(axis=0) == len(names)).all()
    for row, name in enumerate(groups):
        assert (weights[row] == weights[groups.index(name)]).all()


def test_the_seed_decides_and_nothing_else(monkeypatch):
    groups = np.array([f"p{row // 3}" for row in range(900)])
    first = np.concatenate(list(bootstrap.resamples(groups, 50, 1)), axis=1)
    monkeypatch.setattr(bootstrap, "CELLS_AT_ONCE", 900 * 8)
    assert np.array_equal(first, np.concatenate(list(bootstrap.resamples(groups, 50, 1)), axis=1))
    assert not np.array_equal(first, np.concatenate(list(bootstrap.resamples(groups, 50, 2)), axis=1))


def test_images_of_one_patient_do_not_narrow_the_interval():
    """Ten copies of each patient are no more evidence than one of each."""
    values = np.random.default_rng(0).normal(size=60)
    patients = np.arange(60).astype(str)
    options = {"count": 2000, "seed": 0, "confidence": 0.95}
    low, high = bootstrap.intervals(mean_of(values), patients, ALL[:60], **options)
    copied_low, copied_high = bootstrap.intervals(
        mean_of(np.repeat(values, 10)), np.repeat(patients, 10), ALL[:600], **options
    )
    naive_low, naive_high = bootstrap.intervals(
        mean_of(np.repeat(values, 10)), np.arange(600).astype(str), ALL[:600], **options
    )
    assert copied_high - copied_low == pytest.approx(high - low, rel=1e-9)
    assert naive_high - naive_low < 0.5 * (high - low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = rng.normal(size=50)
        low, high = bootstrap.intervals(
            mean_of(values), np.arange(50).astype(str), ALL[:50], count=400, seed=trial, confidence=0.9
        )
        covered += low[0] <= 0.0 <= high[0]
    # 90 % claimed; a binomial of 200 at 0.9 lies within 0.83 to 0.96 in all but 1 of 1000 runs.
    assert 0.83 <= covered / 200 <= 0.96


def test_undefined_resamples_are_left_out_and_one_group_gives_no_interval():
    samples = np.array([[1.0, np.nan, 3.0, 2.0], [np.nan] * 4])
    low, high = bootstrap.interval(samples, 0.5)
    assert (low[0], high[0]) == (1.5, 2.5)
    assert np.isnan([low[1], high[1]]).all()
    options = {"count": 100, "seed": 0, "confidence": 0.95}
    low, high = bootstrap.intervals(mean_of(np.ones(5)), np.array(["one"] * 5), ALL[:5], **options)
    assert np.isnan([low, high]).all()


def test_one_image_that_counts_among_many_gives_no_interval():
    """A single mask in eleven images: its Dice is the same in every resample, which is no certainty."""
    counted = np.arange(11) == 3
    groups = np.arange(11).astype(str)
    low, high = bootstrap.intervals(mean_of(np.ones(11)), groups, counted, count=100, seed=0, confidence=0.95)
    assert np.isnan([low, high]).all()


def test_a_thousand_resamples_of_three_thousand_rows_hold_their_values():
    rng = np.random.default_rng(0)
    head = HeadSpec(kind="independent", name="findings", labels=tuple(f"label{k}" for k in range(14)))
    targets = (rng.random((3000, 14)) < 0.1).astype(float)
    scores = (1 / (1 + np.exp(-rng.normal(2 * targets - 2, 1)))).astype(np.float32)
    measures = metrics.IndependentMeasures(head, scores, targets, ())
    low, high = bootstrap.intervals(
        measures, rng.integers(0, 1200, 3000).astype(str), ALL, count=1000, seed=0, confidence=0.95
    )
    value = metrics.plain(measures, 3000)
    assert ((low <= value) & (value <= high)).mean() > 0.95

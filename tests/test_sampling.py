from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.errors import ConfigError
from medflow.loader import Pass
from medflow.sampling import balanced


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 200), min_size=2, max_size=6), unknown=st.integers(0, 20))
def test_exclusive_classes_are_drawn_equally_often(counts, unknown):
    targets = np.eye(len(counts), dtype=np.float32)[np.repeat(np.arange(len(counts)), counts)]
    rows = np.concatenate([targets, np.full((unknown, len(counts)), np.nan, np.float32)])
    chances = balanced({"d": rows})
    assert chances.sum() == pytest.approx(1.0)
    by_class = chances[: len(targets)] @ targets
    assert by_class == pytest.approx(np.full(len(counts), len(targets) / len(rows) / len(counts)))
    assert chances[len(targets) :] == pytest.approx(1 / len(rows))


def test_rare_labels_and_rows_without_any_get_their_share():
    targets = np.zeros((1000, 3), np.float32)
    targets[:5, 0] = 1
    targets[5:105, 1] = 1
    targets[100:105, 2] = 1  # five rows with the second and the third label
    targets[900:, 0] = np.nan
    chances = balanced({"f": targets})
    none = chances[105:900].sum() + chances[900:].sum()
    assert none == pytest.approx(1 / 4, rel=0.2)
    assert chances[:5].sum() > 0.15 and chances[0] > 10 * chances[6]
    assert chances[102] > 5 * chances[6]


def test_draws_follow_the_chances_and_the_pass_alone():
    chances = balanced({"d": np.eye(2, dtype=np.float32)[[0] * 90 + [1] * 10]})
    draws = [Pass(3, 0, epoch).draw(chances) for epoch in range(50)]
    assert all(len(rows) == 100 for rows in draws)
    assert np.mean(np.concatenate(draws) >= 90) == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(draws[4], Pass(3, 0, 4).draw(chances)) and not np.array_equal(draws[4], draws[5])


def test_a_mask_alone_cannot_be_balanced():
    with pytest.raises(ConfigError, match="no label head"):
        balanced({})

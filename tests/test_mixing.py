from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medflow.config.sections import Mixing, TrainConfig
from medflow.heads import Objective
from medflow.loader import Examples, cut, repeats
from medflow.mixing import Mix, draw, draws, partners
from medflow.pixels import open_store
from medflow.plan import plan

HEADS = (tiny.LABELS, tiny.FINDINGS, tiny.REGION)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Examples:
    rows, _, pixels, _ = tiny.make(tmp_path_factory.mktemp("pixels"), rows=24)
    return Examples(rows, open_store(pixels, tiny.SIZE), HEADS)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**63), alpha=st.sampled_from([0.1, 0.4, 1.0, 5.0]))
def test_a_box_covers_what_the_share_leaves(seed, alpha):
    mix = draw(Mixing(cutmix=alpha), seed, (32, 48))
    rows, columns = mix.box
    inside = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert 0 <= rows.start <= rows.stop <= 32 and 0 <= columns.start <= columns.stop <= 48
    assert mix.share == pytest.approx(1 - inside / (32 * 48))
    assert draw(Mixing(cutmix=alpha), seed, (32, 48)) == mix


def test_probability_and_choice_are_as_asked():
    made = [draw(Mixing(mixup=0.2, cutmix=1.0, probability=0.5), seed, (32, 32)) for seed in range(2000)]
    mixed = [mix for mix in made if mix is not None]
    assert len(mixed) == pytest.approx(1000, abs=80)
    assert sum(mix.box is None for mix in mixed) == pytest.approx(len(mixed) / 2, abs=80)
    shares = [mix.share for mix in mixed if mix.box is None]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05) and np.var(shares) == pytest.approx(1 / (4 * 1.4), abs=0.03)


def test_mixup_is_soft_cross_entropy_on_the_mean_image(examples):
    batch = examples.batch(np.array([3, 4, 5, 7]))
    mixed, other = Mix(0.7, None)(batch)
    assert torch.allclose(mixed.images[0], 0.7 * batch.images[0].float() + 0.3 * batch.images[3].float())
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    soft = 0.7 * batch.targets["diagnosis"] + 0.3 * batch.targets["diagnosis"].flip(0)
    objective = Objective((tiny.LABELS,), examples.targets, TrainConfig(class_weights=False))
    pairs = [
        objective.sums({"diagnosis": logits}, targets, mixed.known)["diagnosis"] for targets in (mixed.targets, other)
    ]
    torch.testing.assert_close(0.7 * pairs[0] + 0.3 * pairs[1], F.cross_entropy(logits, soft, reduction="sum"))


def test_a_label_unknown_in_either_image_does_not_count(examples):
    batch = examples.batch(np.array([1, 2, 3, 4]))  # row 1 has no mask, row 2 no diagnosis
    mixed, _ = Mix(0.5, None)(batch)
    assert mixed.known["diagnosis"].tolist() == [True, False, False, True]
    assert mixed.known["region"].tolist() == [False, True, True, False]
    assert mixed.known["findings"].all(dim=1).tolist() == [True, False, False, True]


def test_cutmix_cuts_image_and_mask_alike(examples):
    batch = examples.batch(np.array([3, 4]))
    box = (slice(4, 20), slice(0, 10))
    mixed, other = Mix(0.8, box)(batch)
    inside = torch.zeros(tiny.SIZE, tiny.SIZE, dtype=torch.bool)
    inside[box] = True
    for name, before, after in (
        ("image", batch.images[..., 0], mixed.images[..., 0]),
        ("mask", batch.targets["region"], mixed.targets["region"]),
    ):
        assert torch.equal(after[0][inside], before[1][inside]), name
        assert torch.equal(after[0][~inside], before[0][~inside]), name
    assert other["region"] is mixed.targets["region"]
    assert torch.equal(other["diagnosis"], batch.targets["diagnosis"].flip(0))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(4, 40), size=st.integers(2, 9), accumulate=st.integers(1, 3), halvings=st.integers(0, 2),
       ranks=st.integers(1, 3))  # fmt: skip
def test_a_plan_has_the_same_rows_however_it_is_cut_up(rows, size, accumulate, halvings, ranks):
    order = np.random.default_rng(0).integers(rows, size=rows)
    steps = plan(order, size=size, accumulate=accumulate, halvings=halvings, ranks=ranks)
    whole = cut(order, size)
    expected = [np.concatenate(whole[start : start + accumulate]) for start in range(0, len(whole), accumulate)]
    assert [step.rows.tolist() for step in steps] == [part.tolist() for part in expected]
    before = np.concatenate([share for step in steps for shares in step.again for share in shares])
    assert before.tolist() == repeats(order).tolist()
    assert all(len(a) == len(b) for step in steps for one, two in zip(step.passes, step.again, strict=True)
               for a, b in zip(one, two, strict=True))  # fmt: skip
    largest = max(len(share) for step in steps for shares in step.passes for share in shares)
    assert largest <= -(-(size + 1) // 2**halvings) and all(len(step.passes[0]) == ranks for step in steps)


def test_partners_are_the_rows_that_are_mixed(examples):
    step = plan(np.arange(8), size=4, accumulate=2)[0]
    made = [[Mix(0.5, None)], [None]]
    assert partners(step, made).tolist() == [3, 2, 1, 0, 4, 5, 6, 7]
    assert draws(Mixing(), step, lambda *_: 0, (8, 8)) == [[None], [None]]
    known = examples.terms(step.rows, partners(step, made))
    assert known["diagnosis"] == 6 and examples.terms(step.rows)["diagnosis"] == 7

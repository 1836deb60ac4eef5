from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FINDINGS, LABELS, REGION
from torch.nn import functional as F

from medflow.config.sections import TrainConfig
from medflow.errors import ConfigError, ModelError
from medflow.heads import LARGEST_WEIGHT, Objective, class_weights, known_terms, make
from medflow.sampling import balanced

SPECS = (LABELS, FINDINGS, REGION)


def sample(spec, rows: int, seed: int = 0):
    """Logits, target and known of one head; the first row is unknown."""
    generator = torch.Generator().manual_seed(seed)
    if spec.kind == "mask":
        logits = torch.randn(rows, 1, 6, 5, generator=generator)
        target = (torch.rand(rows, 6, 5, generator=generator) > 0.5).to(torch.uint8)
        known = torch.arange(rows) > 0
    else:
        logits = torch.randn(rows, len(spec.labels), generator=generator)
        if spec.kind == "exclusive":
            target = F.one_hot(torch.arange(rows) % len(spec.labels), len(spec.labels)).float()
        else:
            target = (torch.rand(rows, len(spec.labels), generator=generator) > 0.5).float()
        target[0] = float("nan")
        known = torch.from_numpy(known_terms(spec, target.numpy()))
    return logits.requires_grad_(), target, known


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_unknown_rows_have_no_gradient(spec):
    logits, target, known = sample(spec, 6)
    loss = make(spec)(logits, target, known)
    loss.backward()
    assert torch.isfinite(loss)
    assert not logits.grad[0].any()
    assert all(row.any() for row in logits.grad[1:])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 6))
def test_sums_do_not_depend_on_how_rows_are_batched(spec, cut):
    logits, target, known = sample(spec, 7)
    head = make(spec)
    parts = head(logits[:cut], target[:cut], known[:cut]) + head(logits[cut:], target[cut:], known[cut:])
    torch.testing.assert_close(parts, head(logits, target, known))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_nothing_known_costs_nothing(spec):
    logits, target, known = sample(spec, 3)
    assert make(spec)(logits, target, torch.zeros_like(known)) == 0.0


def test_exclusive_is_weighted_and_smoothed_cross_entropy():
    logits, target, known = sample(LABELS, 8)
    head = make(LABELS, (0.5, 1.0, 2.0), label_smoothing=0.1)
    weight = torch.tensor((0.5, 1.0, 2.0))
    by_hand = 0.0
    for row in range(1, 8):
        logp = logits[row].log_softmax(0)
        smooth = target[row] * 0.9 + 0.1 / 3
        by_hand -= (smooth * weight * logp).sum()
    torch.testing.assert_close(head(logits, target, known), by_hand)


def test_independent_weighs_positives():
    logits, target, known = sample(FINDINGS, 5)
    weights = torch.tensor((3.0, 0.5))
    p, truth = logits[1:].sigmoid(), target[1:]
    by_hand = -(weights * truth * p.log() + (1 - truth) * (1 - p).log()).sum()
    torch.testing.assert_close(make(FINDINGS, (3.0, 0.5))(logits, target, known), by_hand)


def test_mask_is_monai_dice_plus_cross_entropy():
    from monai.losses import DiceLoss

    logits, target, _ = sample(REGION, 4)
    truth = target[:, None].float()
    dice = DiceLoss(sigmoid=False, squared_pred=True, reduction="none")(logits.sigmoid(), truth).sum()
    entropy = F.binary_cross_entropy(logits.sigmoid(), truth, reduction="none").mean((1, 2, 3)).sum()
    loss = make(REGION)(logits, target, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(loss, dice + entropy)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_activation_gives_probabilities(spec):
    logits, _, _ = sample(spec, 4)
    values = make(spec).activation(logits)
    assert values.shape == logits.shape
    assert ((values >= 0) & (values <= 1)).all()
    if spec.kind == "exclusive":
        torch.testing.assert_close(values.sum(1), torch.ones(4))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=3))
def test_class_weights_of_exclusive_have_mean_one(counts):
    targets = np.eye(3, dtype=np.float32)[np.repeat(np.arange(3), counts)]
    weights = np.array(class_weights(LABELS, targets))
    assert targets @ weights == pytest.approx(sum(counts) / 3 / targets.sum(0)[targets.argmax(1)])
    assert (targets @ weights).mean() == pytest.approx(1.0)


def test_class_weights_of_labels_are_negatives_over_positives_and_bounded():
    targets = np.zeros((1000, 2), dtype=np.float32)
    targets[:200, 0] = 1
    targets[:1, 1] = 1
    targets[500:, 0] = np.nan
    assert class_weights(FINDINGS, targets) == pytest.approx((1.5, LARGEST_WEIGHT))


def test_a_class_never_seen_weighs_one():
    targets = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    assert class_weights(LABELS, targets)[2] == 1.0


def test_a_rare_class_that_is_drawn_often_is_not_raised_a_second_time():
    targets = np.eye(3, dtype=np.float32)[np.repeat(np.arange(3), (90, 8, 2))]
    assert class_weights(LABELS, targets, balanced({"d": targets})) == pytest.approx((1.0, 1.0, 1.0))
    findings = np.zeros((100, 2), dtype=np.float32)
    findings[:10, 0] = findings[10:30, 1] = 1
    assert class_weights(FINDINGS, findings, balanced({"f": findings})) == pytest.approx((2.0, 2.0))


def test_a_head_without_a_known_row_is_refused():
    with pytest.raises(ModelError, match="no known label"):
        class_weights(LABELS, np.full((4, 3), np.nan, dtype=np.float32))


def test_objective_weighs_heads_and_refuses_unknown_names():
    targets = {LABELS.name: np.eye(3, dtype=np.float32)}
    objective = Objective((LABELS, REGION), targets, TrainConfig(loss_weights={"diagnosis": 2.0}))
    assert objective.total({"diagnosis": 1.0, "region": 3.0}) == 5.0
    with pytest.raises(ConfigError, match="lesion"):
        Objective((LABELS,), targets, TrainConfig(loss_weights={"lesion": 1.0}))

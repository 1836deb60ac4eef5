from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_heads import SPECS, sample
from tiny import FINDINGS, LABELS, REGION
from torch.nn import functional as F

from medflow import losses
from medflow.config.sections import FITS, Loss, TrainConfig
from medflow.errors import ConfigError
from medflow.heads import Objective, losses_of, make

FITTING = [(kind, spec) for kind, heads in FITS.items() for spec in SPECS if spec.kind in heads]
UNFIT = [(kind, spec) for kind, heads in FITS.items() for spec in SPECS if spec.kind not in heads]
ONES = torch.ones(3)


def labels(rows: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, k, generator=generator)
    return logits, (torch.rand(rows, k, generator=generator) > 0.6).float()


def fitting(argument: str):
    return pytest.mark.parametrize(argument, FITTING, ids=lambda value: getattr(value, "kind", value))


# -- the losses against those of others ----------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.5, 1.0, 2.0, 5.0]), alpha=st.floats(0.05, 0.95))
def test_sigmoid_focal_is_torchvisions(seed, gamma, alpha):
    from torchvision.ops import sigmoid_focal_loss

    logits, target = labels(6, 3, seed)
    ours = losses.sigmoid_focal(logits, target, alpha * ONES, (1 - alpha) * ONES, gamma)
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, target, alpha, gamma), rtol=1e-4, atol=1e-6)


def test_softmax_focal_is_monais():
    from monai.losses import FocalLoss

    logits, _ = labels(8, 3, 0)
    truth = F.one_hot(torch.arange(8) % 3, 3).float()
    ours = losses.softmax_focal(logits, truth, ONES, 2.0)
    theirs = FocalLoss(gamma=2.0, use_softmax=True, reduction="none")(logits, truth).sum(1)
    torch.testing.assert_close(ours, theirs)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), alpha=st.floats(0.1, 0.9))
def test_tversky_is_monais(seed, alpha):
    from monai.losses import TverskyLoss

    logits, target = labels(4, 30, seed)
    theirs = TverskyLoss(sigmoid=True, alpha=alpha, beta=1 - alpha, reduction="none")(logits[:, None], target[:, None])
    torch.testing.assert_close(losses.tversky(logits, target, alpha, 1 - alpha), theirs.flatten())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), positive=st.floats(0.5, 3), negative=st.floats(1, 5), margin=st.floats(0, 0.3))
def test_asymmetric_is_the_papers(seed, positive, negative, margin):
    logits, y = labels(6, 3, seed)
    p = logits.double().sigmoid()
    shifted = (p - margin).clamp(min=0)
    by_hand = -y * (1 - p) ** positive * p.log() - (1 - y) * shifted**negative * (1 - shifted).log()
    ours = losses.asymmetric(logits, y, positive, negative, margin)
    torch.testing.assert_close(ours, by_hand.float(), rtol=1e-3, atol=1e-5)


# -- what holds of all ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 40.0]))
@fitting(("kind", "spec"))
def test_a_loss_is_never_negative_and_always_finite(kind, spec, seed, scale):
    logits, target, known = sample(spec, 5, seed)
    logits = (scale * logits.detach()).requires_grad_()
    loss = make(spec, chosen=(Loss(kind=kind),))(logits, target, known)
    loss.backward()
    assert loss.item() >= 0 and torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@fitting(("kind", "spec"))
def test_what_is_unknown_never_counts(kind, spec):
    logits, target, known = sample(spec, 6)
    head = make(spec, chosen=(Loss(kind=kind),))
    loss = head(logits, target, known)
    loss.backward()
    assert not logits.grad[0].any() and all(row.any() for row in logits.grad[1:])
    other = target.clone()
    other[0] = 0
    moved = logits.detach().clone()
    moved[0] += 7
    assert head(moved, other, known).item() == pytest.approx(loss.item(), rel=1e-6)
    assert head(logits, target, torch.zeros_like(known)) == 0.0


@fitting(("kind", "spec"))
def test_following_the_gradient_lowers_the_loss(kind, spec):
    logits, target, known = sample(spec, 6)
    head = make(spec, chosen=(Loss(kind=kind),))
    before = head(logits, target, known)
    before.backward()
    step = 0.1 / float(logits.grad.norm())
    assert head(logits.detach() - step * logits.grad, target, known) < before


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_focal_with_gamma_0_is_cross_entropy(spec, seed):
    logits, target, known = sample(spec, 6, seed)
    weights = (0.5, 1.0, 2.0)[: len(spec.labels)]
    focal = make(spec, weights, chosen=(Loss(kind="focal", gamma=0.0),))
    entropy = make(spec, weights, chosen=(Loss(kind="cross_entropy"),))
    torch.testing.assert_close(focal(logits, target, known), entropy(logits, target, known))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tversky_of_halves_is_dice_without_squares(seed):
    from monai.losses import DiceLoss

    logits, target = labels(4, 40, seed)
    dice = DiceLoss(sigmoid=True, reduction="none")(logits[:, None], target[:, None]).flatten()
    torch.testing.assert_close(losses.tversky(logits, target, 0.5, 0.5), dice, rtol=1e-4, atol=1e-5)


def test_asymmetric_forgives_negatives_below_the_margin():
    logits = torch.tensor([[-4.0, -4.0]])
    assert losses.asymmetric(logits, torch.zeros(1, 2), 1.0, 4.0, 0.05).sum() < 1e-20
    assert losses.asymmetric(logits, torch.ones(1, 2), 1.0, 4.0, 0.05).sum() > 7


# -- which head gets which -----------------------------------------------------------------------


def test_terms_of_a_sum_are_added_by_their_weights():
    logits, target, known = sample(REGION, 5)
    single = {kind: make(REGION, chosen=(Loss(kind=kind),))(logits, target, known) for kind in ("dice", "tversky")}
    both = make(REGION, chosen=(Loss(kind="dice", weight=2.0), Loss(kind="tversky", weight=0.5)))
    torch.testing.assert_close(both(logits, target, known), 2.0 * single["dice"] + 0.5 * single["tversky"])


def test_a_loss_is_found_by_name_then_by_kind():
    focal, dice = Loss(kind="focal"), Loss(kind="dice")
    config = TrainConfig(losses={"exclusive": focal, "region": (dice,), "mask": focal})
    assert losses_of(LABELS, config) == (focal,)
    assert losses_of(REGION, config) == (dice,)
    assert losses_of(FINDINGS, config) == (Loss(kind="cross_entropy"),)


@pytest.mark.parametrize(("kind", "spec"), UNFIT, ids=lambda value: getattr(value, "kind", value))
def test_a_loss_that_does_not_fit_is_refused_with_those_that_do(kind, spec):
    with pytest.raises(ConfigError, match=f"{kind} is no loss for the {spec.kind} head") as error:
        losses_of(spec, TrainConfig(losses={spec.name: Loss(kind=kind)}))
    assert all((spec.kind in heads) == (name in error.value.hint) for name, heads in FITS.items())


def test_alpha_and_asymmetry_stand_for_class_weights():
    targets = {FINDINGS.name: torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).numpy()}
    for loss, weighed in [
        (Loss(kind="focal"), True), (Loss(kind="focal", alpha=0.25), False), (Loss(kind="asymmetric"), False)
    ]:  # fmt: skip
        assert bool(Objective((FINDINGS,), targets, TrainConfig(losses={"findings": loss})).class_weights) == weighed
    with pytest.raises(ConfigError, match="alpha"):
        losses_of(LABELS, TrainConfig(losses={"diagnosis": Loss(kind="focal", alpha=0.25)}))
    with pytest.raises(ConfigError, match="lesion"):
        Objective((FINDINGS,), targets, TrainConfig(losses={"lesion": Loss(kind="focal")}))

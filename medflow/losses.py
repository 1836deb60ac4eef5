"""What one prediction costs, before it is weighed, masked and added up by ``medflow.heads``.

Shapes: n images, k labels, p pixels. Logits are float32 (n, k), or (n, p) for a mask; targets are 0 or 1 in the same
shape and known. Each function returns the loss of each term, never negative: (n,) for exclusive classes and masks,
(n, k) for independent labels.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

#: MONAI's ``DiceLoss`` defaults, so that the first published system's loss is the same number here.
SMOOTH: Final = 1e-5
#: A power between 0 and 1 has an infinite slope at 0.
SMALLEST: Final = 1e-7


def softmax_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Of the one true class, with class weights (k,); ``smoothing`` spreads that share over all classes."""
    return F.cross_entropy(
        logits, target.argmax(dim=1), weight=weights, reduction="none", label_smoothing=smoothing
    )  # fmt: skip


def softmax_focal(logits: Tensor, target: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma times cross entropy, p being the true class's probability (Lin et al. 2017, arXiv 1708.02002)."""
    classes = target.argmax(dim=1)
    log_p = logits.log_softmax(dim=1).gather(1, classes[:, None])[:, 0]
    return _power(-torch.expm1(log_p), gamma) * -log_p * weights[classes]


def sigmoid_cross_entropy(logits: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    """Of each label, with the weight of its positives (k,)."""
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=positive, reduction="none")


def sigmoid_focal(logits: Tensor, target: Tensor, positive: Tensor, negative: Tensor, gamma: float) -> Tensor:
    """Likewise (1 - p)^gamma times cross entropy, p the probability of what is true; weights (k,) of either truth."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = target * torch.sigmoid(-logits) + (1.0 - target) * torch.sigmoid(logits)
    return (target * positive + (1.0 - target) * negative) * _power(wrong, gamma) * entropy


def asymmetric(logits: Tensor, target: Tensor, positive: float, negative: float, margin: float) -> Tensor:
    """Focal with one exponent for positives and one for negatives, whose probability is lowered by ``margin`` first.

    Ridnik et al. 2021, arXiv 2009.14119, equations 5 to 7: a negative below the margin costs nothing.
    """
    shifted = (torch.sigmoid(logits) - margin).clamp(min=0.0)
    of_positive = _power(torch.sigmoid(-logits), positive) * -F.logsigmoid(logits)
    of_negative = _power(shifted, negative) * -torch.log((1.0 - shifted).clamp(min=SMALLEST))
    return target * of_positive + (1.0 - target) * of_negative


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of each image, with squared probabilities (Milletari et al. 2016, arXiv 1606.04797)."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum(1)
    total = probability.square().sum(1) + target.sum(1)
    return 1.0 - (2.0 * overlap + SMOOTH) / (total + SMOOTH)


def tversky(logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    """1 - Tversky index of each image: ``alpha`` weighs false positives, ``beta`` false negatives.

    Salehi et al. 2017, arXiv 1706.05721; at 0.5 and 0.5 it is 1 - Dice without squares.
    """
    probability = logits.sigmoid()
    overlap = (probability * target).sum(1)
    false_positive = (probability * (1.0 - target)).sum(1)
    false_negative = ((1.0 - probability) * target).sum(1)
    return 1.0 - (overlap + SMOOTH) / (overlap + alpha * false_positive + beta * false_negative + SMOOTH)


def _power(base: Tensor, exponent: float) -> Tensor:
    return base.clamp(min=SMALLEST) ** exponent

"""What a dataset asks of a model, as losses: exclusive classes, independent labels, a mask.

Shapes: n images, k labels of a head, h and w pixels. A head's logits are float32 (n, k), a mask's (n, 1, h, w).
Its target is float32 (n, k), NaN for unknown; a mask's is uint8 (n, h, w), 0 or 1.
``known`` says what counts: bool (n,) for exclusive and mask heads, (n, k) for independent labels.

A loss is returned as a sum over its known terms, beside their number, so that the mean over an
optimiser step or a validation set is exact however it was cut into batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medflow.config.sections import TrainConfig
from medflow.errors import ConfigError, ModelError
from medflow.records import HeadSpec

#: A label with 3 positives in 100,000 rows would otherwise weigh as much as all the others together.
LARGEST_WEIGHT: Final = 100.0
#: MONAI's ``DiceLoss`` defaults, so that the first seed's loss is the same number here.
DICE_SMOOTH: Final = 1e-5

Value = TypeVar("Value", float, Tensor)


class Head(nn.Module, ABC):
    """The loss and activation of one ``HeadSpec``. Calling it gives the loss; it has no parameters."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def outputs(self) -> int:
        """Output channels that a network gives this head."""
        return len(self.spec.labels)

    @abstractmethod
    def forward(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """Sum of the loss over known terms, a scalar; 0 where nothing is known."""

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities, 0 to 1, of the same shape."""


class Exclusive(Head):
    """One class of k: cross entropy with class weights and label smoothing. A term is an image."""

    weights: Tensor

    def __init__(self, spec: HeadSpec, weights: Sequence[float], label_smoothing: float = 0.0) -> None:
        super().__init__(spec)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        classes = torch.nan_to_num(target).argmax(dim=1)
        losses = F.cross_entropy(
            logits, classes, weight=self.weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return torch.where(known, losses, 0.0).sum()

    def activation(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


class Independent(Head):
    """Any of k labels: binary cross entropy with positive weights. A term is one known label of an image."""

    weights: Tensor

    def __init__(self, spec: HeadSpec, weights: Sequence[float]) -> None:
        super().__init__(spec)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(
            logits, torch.nan_to_num(target), pos_weight=self.weights, reduction="none"
        )
        return torch.where(known, losses, 0.0).sum()

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Mask(Head):
    """One region: soft Dice plus binary cross entropy, each per image. A term is an image with a mask.

    Dice with squared probabilities (Milletari et al. 2016, arXiv 1606.04797), as MONAI's
    ``DiceLoss(squared_pred=True)``; cross entropy is the mean over the image's pixels.
    """

    def forward(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        logits, truth = logits.flatten(1), target.flatten(1).to(logits.dtype)
        probability = logits.sigmoid()
        overlap = (probability * truth).sum(1)
        total = probability.square().sum(1) + truth.sum(1)
        dice = 1.0 - (2.0 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        return torch.where(known, dice + entropy, 0.0).sum()

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Objective(nn.Module):
    """All heads of one training as one loss, with class weights from its rows."""

    def __init__(self, specs: Sequence[HeadSpec], targets: Mapping[str, np.ndarray], config: TrainConfig) -> None:
        """``targets`` are the training rows', float32 (N, k) by head. Raises ConfigError for a weight of no head."""
        super().__init__()
        names = [spec.name for spec in specs]
        for name in config.loss_weights:
            if name not in names:
                raise ConfigError(f"train.loss_weights names {name!r}, no head", hint=f"heads: {', '.join(names)}")
        labelled = [spec for spec in specs if spec.kind != "mask" and config.class_weights]
        self.class_weights = {spec.name: class_weights(spec, targets[spec.name]) for spec in labelled}
        self._heads = nn.ModuleDict(
            {spec.name: make(spec, self.class_weights.get(spec.name, ()), config.label_smoothing) for spec in specs}
        )
        self._weights = {name: config.loss_weights.get(name, 1.0) for name in names}

    def sums(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], known: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """By head, the sum of its loss over the known terms of a batch."""
        return {name: head(logits[name], targets[name], known[name]) for name, head in self._heads.items()}

    def total(self, means: Mapping[str, Value]) -> Value:
        """One loss from each head's mean: their sum, each times its weight."""
        parts = [self._weights[name] * mean for name, mean in means.items()]
        return sum(parts[1:], start=parts[0])


def make(spec: HeadSpec, weights: Sequence[float] = (), label_smoothing: float = 0.0) -> Head:
    """The head of a spec. ``weights`` are those of ``class_weights``; empty weighs all labels by 1."""
    weights = tuple(weights) or (1.0,) * len(spec.labels)
    match spec.kind:
        case "exclusive":
            return Exclusive(spec, weights, label_smoothing)
        case "independent":
            return Independent(spec, weights)
        case "mask":
            return Mask(spec)


def known_terms(spec: HeadSpec, targets: np.ndarray) -> np.ndarray:
    """What may be learnt from label targets float32 (N, k): bool (N,) if exclusive, else (N, k)."""
    if spec.kind == "exclusive":
        return np.nansum(targets, axis=1) == 1.0
    return ~np.isnan(targets)


def class_weights(spec: HeadSpec, targets: np.ndarray) -> tuple[float, ...]:
    """One weight a label from the training rows' targets, float32 (N, k); empty for a mask.

    Exclusive: inverse frequency, scaled so that the mean over the known rows is 1. Independent: negatives
    over positives of each label. A label never seen weighs 1; none weighs more than ``LARGEST_WEIGHT``.
    Raises ModelError where an exclusive head has no known row at all.
    """
    if spec.kind == "mask":
        return ()
    known = known_terms(spec, targets)
    if not known.any():
        raise ModelError(
            f"head {spec.name!r} has no known label in {len(targets)} training rows",
            hint="leave the head out with `heads=[...]`, or check the dataset's label columns",
        )
    if spec.kind == "exclusive":
        counts = np.nan_to_num(targets[known]).sum(axis=0, dtype=np.float64)
        weights = known.sum() / (len(spec.labels) * np.maximum(counts, 1.0))
        seen = counts > 0
    else:
        positive = np.nansum(targets, axis=0, dtype=np.float64)
        weights = (known.sum(axis=0) - positive) / np.maximum(positive, 1.0)
        seen = (positive > 0) & (positive < known.sum(axis=0))
    weights = np.where(seen, np.minimum(weights, LARGEST_WEIGHT), 1.0)
    return tuple(float(weight) for weight in weights)

"""What a dataset asks of a model, as losses: exclusive classes, independent labels, a mask.

Shapes: n images, k labels of a head, h and w pixels. A head's logits are float32 (n, k), a mask's (n, 1, h, w).
Its target is float32 (n, k), NaN for unknown; a mask's is uint8 (n, h, w), 0 or 1.
``known`` says what counts: bool (n,) for exclusive and mask heads, (n, k) for independent labels.

A loss is returned as a sum over its known terms, beside their number, so that the mean over an
optimiser step or a validation set is exact however it was cut into batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from medflow import losses
from medflow.config.sections import FITS, Loss, TrainConfig
from medflow.config.sections.losses import HeadKind
from medflow.errors import ConfigError, ModelError
from medflow.records import HeadSpec
from medflow.sampling import balanced

#: A label with 3 positives in 100,000 rows would otherwise weigh as much as all the others together.
LARGEST_WEIGHT: Final = 100.0

Value = TypeVar("Value", float, Tensor)


class Head(nn.Module, ABC):
    """The loss and activation of one ``HeadSpec``. Calling it gives the loss; it has no parameters."""

    weights: Tensor

    def __init__(
        self, spec: HeadSpec, losses: Sequence[Loss], weights: Sequence[float], label_smoothing: float = 0.0
    ) -> None:
        """``losses`` are added, each times its weight; ``weights`` are the classes' or, of labels, the positives'."""
        super().__init__()
        self.spec = spec
        self.losses = tuple(losses)
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    @property
    def outputs(self) -> int:
        """Output channels that a network gives this head."""
        return len(self.spec.labels)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """Sum of the loss over known terms, a scalar; 0 where nothing is known."""
        parts = [loss.weight * self.each(loss, logits, target) for loss in self.losses]
        return torch.where(known, sum(parts[1:], start=parts[0]), 0.0).sum()

    @abstractmethod
    def each(self, loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
        """One loss of every term, in the shape of ``known``; any finite number where it is not known."""

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities, 0 to 1, of the same shape."""


class Exclusive(Head):
    """One class of k. A term is an image. Label smoothing is cross entropy's."""

    def each(self, loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
        target = torch.nan_to_num(target)
        if loss.kind == "focal":
            return losses.softmax_focal(logits, target, self.weights, _or(loss.gamma, 2.0))
        return losses.softmax_cross_entropy(logits, target, self.weights, self.label_smoothing)

    def activation(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


class Independent(Head):
    """Any of k labels. A term is one known label of an image."""

    def each(self, loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
        target = torch.nan_to_num(target)
        match loss.kind:
            case "focal":
                positive, negative = _sides(loss, self.weights)
                return losses.sigmoid_focal(logits, target, positive, negative, _or(loss.gamma, 2.0))
            case "asymmetric":
                exponents = _or(loss.gamma, 1.0), _or(loss.gamma_negative, 4.0)
                return losses.asymmetric(logits, target, *exponents, _or(loss.margin, 0.05))
            case _:
                return losses.sigmoid_cross_entropy(logits, target, self.weights)

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Mask(Head):
    """One region. A term is an image with a mask; what is counted by pixel is the mean over the image's pixels."""

    def each(self, loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.flatten(1), target.flatten(1).to(logits.dtype)
        match loss.kind:
            case "dice":
                return losses.dice(logits, target)
            case "tversky":
                return losses.tversky(logits, target, _or(loss.alpha, 0.3), _or(loss.beta, 0.7))
            case "focal":
                positive, negative = _sides(loss, self.weights)
                return losses.sigmoid_focal(logits, target, positive, negative, _or(loss.gamma, 2.0)).mean(1)
            case _:
                return losses.sigmoid_cross_entropy(logits, target, self.weights).mean(1)

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _sides(loss: Loss, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of positives and of negatives: alpha and 1 - alpha, else those of the training rows and 1."""
    ones = torch.ones_like(weights)
    return (weights, ones) if loss.alpha is None else (loss.alpha * ones, (1.0 - loss.alpha) * ones)


class Objective(nn.Module):
    """All heads of one training as one loss, with class weights from its rows."""

    def __init__(self, specs: Sequence[HeadSpec], targets: Mapping[str, np.ndarray], config: TrainConfig) -> None:
        """``targets`` are the training rows', float32 (N, k) by head.

        Raises ConfigError for a weight or a loss of no head, and for a loss that its head cannot have.
        """
        super().__init__()
        names = [spec.name for spec in specs]
        labels = {spec.name: targets[spec.name] for spec in specs if spec.kind != "mask"}
        chances = balanced(labels) if config.sampler == "balanced" else None
        _refuse_unknown("train.loss_weights", config.loss_weights, names)
        _refuse_unknown("train.losses", config.losses, [*names, *get_args(HeadKind)])
        chosen = {spec.name: losses_of(spec, config) for spec in specs}
        self.class_weights = {
            spec.name: class_weights(spec, targets[spec.name], chances)
            for spec in specs
            if config.class_weights and spec.kind != "mask" and any(map(_is_weighed, chosen[spec.name]))
        }
        self._heads = nn.ModuleDict(
            {
                spec.name: make(spec, self.class_weights.get(spec.name, ()), config.label_smoothing, chosen[spec.name])
                for spec in specs
            }
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


def make(
    spec: HeadSpec, weights: Sequence[float] = (), label_smoothing: float = 0.0, chosen: Sequence[Loss] = ()
) -> Head:
    """The head of a spec. ``weights`` are those of ``class_weights``; empty weighs all labels by 1.

    ``chosen`` are its losses; empty takes cross entropy, and for a mask Dice plus cross entropy.
    """
    kinds: dict[str, type[Head]] = {"exclusive": Exclusive, "independent": Independent, "mask": Mask}
    weights = tuple(weights) or (1.0,) * len(spec.labels)
    return kinds[spec.kind](spec, tuple(chosen) or _usual(spec), weights, label_smoothing)


def losses_of(spec: HeadSpec, config: TrainConfig) -> tuple[Loss, ...]:
    """The losses that a config asks of a head: by its name, else by its kind, else the usual ones.

    Raises ConfigError for a loss that is not defined for this kind of head.
    """
    asked = config.losses.get(spec.name, config.losses.get(spec.kind, _usual(spec)))
    chosen = (asked,) if isinstance(asked, Loss) else asked
    for loss in chosen:
        fitting = [kind for kind, heads in FITS.items() if spec.kind in heads]
        if loss.kind not in fitting:
            raise ConfigError(
                f"train.losses: {loss.kind} is no loss for the {spec.kind} head {spec.name!r}",
                hint=f"expected one of {', '.join(fitting)}",
            )
        if spec.kind == "exclusive" and loss.alpha is not None:
            raise ConfigError(
                f"train.losses: alpha weighs positives against negatives, and the classes of {spec.name!r} exclude "
                "each other",
                hint="leave alpha out; train.class_weights weighs classes",
            )
    return chosen


def _usual(spec: HeadSpec) -> tuple[Loss, ...]:
    entropy = Loss(kind="cross_entropy")
    return (Loss(kind="dice"), entropy) if spec.kind == "mask" else (entropy,)


def _is_weighed(loss: Loss) -> bool:
    """Whether the training rows' class weights enter a loss: not where alpha or asymmetry stands for them."""
    return loss.kind == "cross_entropy" or (loss.kind == "focal" and loss.alpha is None)


def _refuse_unknown(key: str, named: Iterable[str], known: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            raise ConfigError(f"{key} names {name!r}, no head", hint=f"expected one of {', '.join(known)}")


def known_terms(spec: HeadSpec, targets: np.ndarray) -> np.ndarray:
    """What may be learnt from label targets float32 (N, k): bool (N,) if exclusive, else (N, k)."""
    if spec.kind == "exclusive":
        return np.nansum(targets, axis=1) == 1.0
    return ~np.isnan(targets)


def class_weights(spec: HeadSpec, targets: np.ndarray, chances: np.ndarray | None = None) -> tuple[float, ...]:
    """One weight a label from the training rows' targets, float32 (N, k); empty for a mask.

    ``chances``, float64 (N,) with sum 1, are those by which a sampler draws the rows: frequencies are those of the
    draws, so that a rare class is not raised twice. None: every row is drawn once.

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
    drawn = np.ones(len(targets)) if chances is None else chances * len(targets)
    if spec.kind == "exclusive":
        counts = (np.nan_to_num(targets) * (drawn * known)[:, None]).sum(axis=0, dtype=np.float64)
        weights = (drawn * known).sum() / (len(spec.labels) * np.maximum(counts, 1.0))
        seen = counts > 0
    else:
        positive = np.nansum(targets * drawn[:, None], axis=0, dtype=np.float64)
        negative = (known * drawn[:, None]).sum(axis=0) - positive
        seen = (np.nansum(targets, axis=0) > 0) & (np.nansum(1.0 - targets, axis=0) > 0)
        weights = negative / np.where(seen, positive, 1.0)
    weights = np.where(seen, np.minimum(weights, LARGEST_WEIGHT), 1.0)
    return tuple(float(weight) for weight in weights)

"""Mixup and cutmix: each image of a batch is joined with another, and the loss is that of both, by their shares.

Weighing two losses is the same as mixing the targets where the loss is linear in them, as cross entropy is, and
is also defined where it is not. So targets stay 0, 1 or unknown, and a label unknown in either image does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from medflow.config.sections.training import Mixing
from medflow.loader import Batch
from medflow.plan import Step

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Mix:
    """What is done to one batch: ``share`` of each image is its own, the rest that of its partner."""

    share: float
    box: Box | None
    """Rows and columns that are the partner's in cutmix; None is mixup."""

    def __call__(self, batch: Batch) -> tuple[Batch, Mapping[str, Tensor]]:
        """The batch with mixed images and its ``known``, and the partners' targets. Row i's partner is row n - 1 - i.

        Images come back as float32, 0 to 255. Under cutmix a mask has its partner's in the box, so it has no second
        target; under mixup both masks count by their shares.
        """
        known = {name: value & value.flip(0) for name, value in batch.known.items()}
        masks = {name: value for name, value in batch.targets.items() if value.ndim == 3 and self.box}
        targets = {**batch.targets, **{name: self._joined(value) for name, value in masks.items()}}
        partners = {name: value if name in masks else value.flip(0) for name, value in targets.items()}
        return replace(batch, images=self._joined(batch.images), targets=targets, known=known), partners

    def _joined(self, own: Tensor) -> Tensor:
        other = own.flip(0)
        if self.box is None:
            return self.share * own.float() + (1.0 - self.share) * other.float()
        joined = own.clone()
        rows, columns = self.box
        joined[:, rows, columns] = other[:, rows, columns]
        return joined


def mixes(config: Mixing) -> bool:
    """Whether any batch is mixed."""
    return config.probability > 0 and (config.mixup > 0 or config.cutmix > 0)


def draw(config: Mixing, seed: int, size: tuple[int, int]) -> Mix | None:
    """What is done to a batch of images of ``size`` (height, width), from ``seed`` alone; None leaves it as it is.

    Mixup: Zhang et al. 2018, arXiv 1710.09412. Cutmix: Yun et al. 2019, arXiv 1905.04899, algorithm 1, with the share
    of what the box really covers.
    """
    generator = np.random.default_rng(seed)
    if generator.random() >= config.probability:
        return None
    boxed = config.cutmix > 0 and (config.mixup == 0 or generator.random() < 0.5)
    alpha = config.cutmix if boxed else config.mixup
    share = float(generator.beta(alpha, alpha))
    if not boxed:
        return Mix(share, None)
    rows, columns = (_span(generator, length, share) for length in size)
    covered = (rows.stop - rows.start) * (columns.stop - columns.start) / (size[0] * size[1])
    return Mix(1.0 - covered, (rows, columns))


def draws(config: Mixing, step: Step, seed: Callable[[int, int], int], size: tuple[int, int]) -> list[list[Mix | None]]:
    """For each forward pass of a step, for each rank, what is done; ``seed`` is asked with pass and rank."""
    ranks = range(len(step.passes[0]))
    if not mixes(config):
        return [[None for _ in ranks] for _ in step.passes]
    return [[draw(config, seed(index, rank), size) for rank in ranks] for index, _ in enumerate(step.passes)]


def partners(step: Step, made: Sequence[Sequence[Mix | None]]) -> np.ndarray:
    """For each row of a step, the one it is joined with; itself where its share is left as it is."""
    return np.concatenate(
        [
            share if mix is None else share[::-1]
            for shares, mixed in zip(step.passes, made, strict=True)
            for share, mix in zip(shares, mixed, strict=True)
        ]
    )


def _span(generator: np.random.Generator, length: int, share: float) -> slice:
    """Where the box lies on one axis: around a random middle, cut at the edges."""
    half = length * float(np.sqrt(1.0 - share)) / 2.0
    middle = generator.integers(length)
    return slice(max(0, round(middle - half)), min(length, round(middle + half)))

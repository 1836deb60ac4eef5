"""Which rows an epoch draws: all of them once, or rare classes as often as common ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from medflow.errors import ConfigError


def chances(sampler: Literal["shuffle", "balanced"], targets: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What `train.sampler` asks for: each row's probability to be drawn, or None where every row comes once."""
    return balanced(targets) if sampler == "balanced" else None


def balanced(targets: Mapping[str, np.ndarray]) -> np.ndarray:
    """The probability of each of N training rows to be drawn, float64 (N,), sum 1.

    Of a head's labels, targets float32 (N, k), a row has the mean over its positives of 1 / (rows with that label); the
    rows that have none are one class more, as 'no finding' is. With exclusive classes, every class is then drawn
    equally often. A row of which nothing is known is drawn as often as by shuffling. Several heads count alike.
    Raises ConfigError where there is no label head.
    """
    if not targets:
        raise ConfigError(
            "train.sampler is balanced, and there is no label head to balance by", hint="set train.sampler=shuffle"
        )
    shares = np.mean([_of_head(values) for values in targets.values()], axis=0)
    return shares / shares.sum()


def _of_head(targets: np.ndarray) -> np.ndarray:
    """Of one head, probabilities that sum to 1."""
    positive = np.nan_to_num(targets) == 1.0
    unknown = np.isnan(targets).all(axis=1)
    none = ~positive.any(axis=1) & ~unknown
    classes = np.column_stack([positive, none])
    each = classes / np.maximum(classes.sum(axis=0), 1)
    weights = each.sum(axis=1) / np.maximum(classes.sum(axis=1), 1)
    total, known = weights.sum(), len(targets) - unknown.sum()
    weights = weights / total * known if total > 0 else weights
    return np.where(unknown, 1.0, weights) / len(targets)

"""Percentile bootstrap by group (Efron & Tibshirani 1993, chapter 13).

Groups (patients, lesions) are drawn with replacement, not images: two images of one patient are not two
pieces of evidence. A resample is a vector of row weights, how often the row's group was drawn; see ``metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

CELLS_AT_ONCE = 2**19
"""Rows times resamples held at once: 4 MB of weights, which stay in the processor's cache."""


def resamples(groups: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Row weights, float64 (n, r) at a time, ``count`` columns in all. The same seed gives the same weights."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    size = len(names)
    random = np.random.default_rng([seed, size])
    at_once = int(np.clip(CELLS_AT_ONCE // max(len(index), 1), 8, 256))
    for start in range(0, count, at_once):
        columns = min(at_once, count - start)
        drawn = random.integers(0, size, size=(columns, size)) + size * np.arange(columns)[:, None]
        times = np.bincount(drawn.ravel(), minlength=columns * size).reshape(columns, size)
        yield np.ascontiguousarray(times.T[index], dtype=np.float64)


def distribution(measure: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``measure`` (weights (n, r) → (k, r)) under every resample, float64 (k, count)."""
    return np.concatenate([measure(weights) for weights in resamples(groups, count, seed)], axis=1)


def interval(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends, float64 (k,) each, over the resamples in which a value is defined; NaN where none is."""
    tail = (1.0 - confidence) / 2.0
    ends = np.full((2, len(samples)), np.nan)
    for row, values in enumerate(samples):
        defined = values[~np.isnan(values)]
        if len(defined):
            ends[:, row] = np.quantile(defined, [tail, 1.0 - tail])
    return ends[0], ends[1]


def intervals(
    measure: Callable[[np.ndarray], np.ndarray],
    groups: np.ndarray,
    counted: np.ndarray,
    *,
    count: int,
    seed: int,
    confidence: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of each value of ``measure``; NaN where the rows that count have one group only, or none.

    One group resampled is always itself: an interval of no width would claim a certainty that is not there.
    ``counted`` bool (n,): the rows that ``measure`` is over; a single image with a mask among many is one group.
    """
    if len(np.unique(np.asarray(groups, dtype=str)[counted])) < 2:
        values = measure(np.ones((len(groups), 1)))
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    return interval(distribution(measure, groups, count, seed), confidence)

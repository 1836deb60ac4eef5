"""The difference of two models on the same rows, both resampled by the same groups at once.

Two separate intervals may overlap where the difference is plain, since hard images are hard for both; the paired
interval is the one that answers whether one model is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medflow import bootstrap, metrics
from medflow.errors import DataError
from medflow.records import HeadSpec, Predictions


@dataclass(frozen=True)
class Question:
    """Which number is compared, and how sure the answer must be."""

    head: HeadSpec
    metric: str
    label: str | None = None
    """A class; None is the macro value, or micro where a metric has no macro."""
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """First minus second; positive is better for the first, also where a smaller metric is better."""

    label: str
    first: float
    second: float
    difference: float
    low: float
    """NaN, as ``high``, where fewer than two groups count."""
    high: float
    n: int
    groups: int


def difference(first: Predictions, second: Predictions, question: Question) -> Difference:
    """Paired bootstrap of one metric. The predictions list the same rows. Raises DataError for an unknown metric."""
    one, other = metrics.of_head(first, question.head), metrics.of_head(second, question.head)
    position = _position(one, question)
    sign = metrics.orientation(question.metric)

    def apart(weights: np.ndarray) -> np.ndarray:
        return sign * (one(weights)[[position]] - other(weights)[[position]])

    low, high = bootstrap.intervals(
        apart,
        first.group,
        metrics.counted(first, question.head),
        count=question.resamples,
        seed=question.seed,
        confidence=question.confidence,
    )
    rows = len(first)
    return Difference(
        label=one.names[position][0],
        first=float(metrics.plain(one, rows)[position]),
        second=float(metrics.plain(other, rows)[position]),
        difference=float(apart(np.ones((rows, 1)))[0, 0]),
        low=float(low[0]),
        high=float(high[0]),
        n=one.rows[position],
        groups=len(set(first.group.tolist())),
    )


def same_rows(first: Predictions, second: Predictions) -> bool:
    """Whether both list the same images in the same order, and so may be paired."""
    return (
        first.rows_digest == second.rows_digest
        and [str(name) for name in first.image_id] == [str(name) for name in second.image_id]
        and [str(name) for name in first.group] == [str(name) for name in second.group]
    )


def _position(measures: metrics.Measures, question: Question) -> int:
    for label in ("macro", "micro") if question.label is None else (question.label,):
        if (label, question.metric) in measures.names:
            return measures.names.index((label, question.metric))
    known = ", ".join(sorted({f"{metric} ({label})" for label, metric in measures.names}))
    raise DataError(
        f"{question.head.name} has no {question.metric!r} for {question.label or 'macro'}; there is {known}",
        hint="name one of them",
    )

"""At which probability an independent label is called positive, fitted on validation rows. numpy only.

``scores`` are probabilities (n,), ``truth`` is 1, 0 or NaN for unknown (n,); unknown ones never count.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from medflow.records import OperatingPoint, Threshold

DEFAULT = 0.5
YOUDEN: Final = OperatingPoint()
FEWEST_POSITIVES = 10
"""Of a label on validation rows, to fit a threshold that reaches a sensitivity."""


def fitted(point: OperatingPoint, head: str, label: str, scores: np.ndarray, truth: np.ndarray) -> Threshold:
    """The threshold of one independent label. Too few positives for a sensitivity leave it at Youden's, and say so."""
    best = _youden(head, label, scores, truth)
    if point.at is None:
        return best
    positive = scores[truth > 0.5].astype(np.float64)
    # Of fewer than 1 / (1 - at) positives none may be missed: the lowest alone would set the threshold.
    needed = max(FEWEST_POSITIVES, int(np.ceil(round(1 / (1 - point.at), 9))))
    if len(positive) < needed:
        told = f"{best.rule} ({len(positive)} positives, sensitivity {point.at:g} needs {needed})"
        return best.model_copy(update={"rule": told})
    value = _reaching(point.at, positive, scores[~np.isnan(truth)].astype(np.float64))
    return Threshold(head=head, label=label, value=value, rule=f"sensitivity {point.at:g}")


def _reaching(sensitivity: float, positive: np.ndarray, scores: np.ndarray) -> float:
    """The highest threshold at or above which that share of positives lies; half-way to the next score below."""
    found = int(np.ceil(sensitivity * len(positive) - 1e-9))
    lowest = np.sort(positive)[len(positive) - found]
    return float((lowest + scores[scores < lowest].max(initial=0.0)) / 2)


def _youden(head: str, label: str, scores: np.ndarray, truth: np.ndarray) -> Threshold:
    """The threshold with the largest sensitivity + specificity - 1 (Youden 1950).

    It lies half-way between the two scores that it parts; of equally good ones the nearest to 0.5 is taken.
    ``default`` (0.5) where a label lacks positives or negatives, or where no threshold beats a coin.
    """
    known = ~np.isnan(truth)
    values, index = np.unique(scores[known].astype(np.float64), return_inverse=True)
    positive = truth[known] > 0.5
    if positive.all() or not positive.any():
        return Threshold(head=head, label=label, value=DEFAULT, rule="default")
    hits = _share_at_or_above(index[positive], len(values))
    alarms = _share_at_or_above(index[~positive], len(values))
    gain = hits - alarms
    if gain.max() <= 1e-12:
        return Threshold(head=head, label=label, value=DEFAULT, rule="default")
    below = np.concatenate([[0.0], values[:-1]])
    cuts = ((values + below) / 2)[gain >= gain.max() - 1e-12]
    value = float(cuts[np.argmin(np.abs(cuts - DEFAULT))])
    return Threshold(head=head, label=label, value=value, rule="youden")


def _share_at_or_above(index: np.ndarray, size: int) -> np.ndarray:
    counts = np.bincount(index, minlength=size)
    return np.cumsum(counts[::-1])[::-1] / len(index)

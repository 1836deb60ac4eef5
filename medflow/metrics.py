"""Metrics of every kind of head, as functions of row weights.

A plain metric is the one where each row weighs 1; a bootstrap resample is the same metric under other weights.
So value and interval come from one definition. Shapes: n rows, r weight vectors, ``weights`` float64 (n, r).

Which number has which averaging (``Score.label``):

* exclusive head, one-vs-rest for each class and ``macro``, the mean over classes: precision, recall, specificity,
  f1, auroc, average_precision; balanced_accuracy is the macro recall. ``weighted``, the mean over classes weighted by
  how many images have them: precision, recall (which equals the accuracy), f1. ``micro``, once over all images:
  accuracy, kappa (Cohen, unweighted), ece (confidence of the decided class), brier (squared error summed over
  classes, 0 to 2).
* independent head, for each label and ``macro``: the same names, each label being a problem of its own
  (brier 0 to 1, ece of the label's probability against its frequency).
* mask head, ``macro``, the mean over the images that have a mask: dice and iou.

What is undefined is NaN, is left out of the macro mean, and is seen as NaN beside its label:
a class without positives has no precision, recall, f1, auroc or average precision, one without negatives no
specificity or auroc. A class that is there and was never decided has a precision of 0, not NaN, because leaving it
out would reward a model for silence. Rows whose target is unknown never count.

ECE (Guo et al. 2017, arXiv 1706.04599): 15 bins of equal width, [low, high), weighted by their share of rows.
Dice and IoU of one image: both are 1 where truth and prediction are empty, 0 where only one of them is.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from medflow.decisions import decide, dice_from_counts
from medflow.errors import ConfigError, DataError
from medflow.records import HeadSpec, LabelCounts, Predictions, Threshold

ECE_BINS = 15
SMALLER_IS_BETTER = frozenset({"ece", "brier"})
PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")
WEIGHTED = ("precision", "recall", "f1")
PER_LABEL = ("accuracy", "balanced_accuracy", *PER_CLASS, "kappa", "ece", "brier")
ONCE = ("accuracy", "kappa", "ece", "brier")
MASK = ("dice", "iou")


def orientation(metric: str) -> int:
    """1 where larger is better, -1 where smaller is."""
    return -1 if metric in SMALLER_IS_BETTER else 1


def check_name(where: str, metric: str) -> None:
    """Raise ConfigError where there is no metric of this name; ``where`` is the setting or option that names it."""
    known = (*PER_LABEL, *MASK)
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{where}: expected a metric, found {metric!r}, which is none", hint=f"{meant}there is {', '.join(known)}"
        )


class Measures(ABC):
    """All metrics of one head over some rows. Calling it with weights (n, r) gives float64 (len(names), r)."""

    names: tuple[tuple[str, str], ...]
    """(label, metric) of each value."""
    rows: tuple[int, ...]
    """Rows that each value is over."""

    @abstractmethod
    def __call__(self, weights: np.ndarray) -> np.ndarray: ...


def of_head(predictions: Predictions, head: HeadSpec) -> Measures:
    """The metrics of one head of some predictions. Raises DataError where they lack it."""
    try:
        if head.kind == "mask":
            return MaskMeasures(predictions.mask_scores[head.name])
        probabilities, targets = predictions.probabilities[head.name], predictions.targets[head.name]
    except KeyError as error:
        raise DataError(
            f"the predictions have nothing for head {head.name!r}", hint="evaluate the bundle again"
        ) from error
    if head.kind == "exclusive":
        return ExclusiveMeasures(head, probabilities, targets)
    return IndependentMeasures(head, probabilities, targets, predictions.thresholds)


def counted(predictions: Predictions, head: HeadSpec) -> np.ndarray:
    """bool (n,): rows that any metric of a head is over: with a known label, or with a mask."""
    values = predictions.mask_scores[head.name] if head.kind == "mask" else predictions.targets[head.name]
    return ~np.isnan(values).all(axis=1)


def plain(measures: Measures, rows: int) -> np.ndarray:
    """Each metric with every row counting once, float64 (len(names),)."""
    return measures(np.ones((rows, 1)))[:, 0]


# -- exclusive -----------------------------------------------------------------------------------


class ExclusiveMeasures(Measures):
    """``probabilities`` (n, k), ``targets`` (n, k) one-hot, NaN rows unknown."""

    def __init__(self, head: HeadSpec, probabilities: np.ndarray, targets: np.ndarray) -> None:
        self._known = known_rows(targets)
        scores = probabilities[self._known].astype(np.float64)
        truth = targets[self._known]
        self._classes = len(head.labels)
        true, decided = truth.argmax(axis=1), scores.argmax(axis=1)
        self._cells = _one_hot(true * self._classes + decided, self._classes**2)
        self._rankings = [Ranking(scores[:, k], true == k) for k in range(self._classes)]
        self._gaps = _calibration_gaps(scores.max(axis=1, initial=0.0), true == decided)
        self._errors = ((scores - truth) ** 2).sum(axis=1)
        per_class = [(label, metric) for label in (*head.labels, "macro") for metric in PER_CLASS]
        weighted = [("weighted", metric) for metric in WEIGHTED]
        self.names = (*per_class, ("macro", "balanced_accuracy"), *weighted, *(("micro", metric) for metric in ONCE))
        self.rows = (len(true),) * len(self.names)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        weights = weights[self._known]
        confusion = (self._cells.T @ weights).reshape(self._classes, self._classes, -1)
        per_class = self._per_class(confusion, weights)
        macro = _mean_of_defined(per_class)
        total = weights.sum(axis=0)
        recall = macro[PER_CLASS.index("recall")]
        once = [
            _ratio(np.einsum("kkr->r", confusion), total),
            _kappa(confusion),
            _ratio(np.abs(self._gaps.T @ weights).sum(axis=0), total),
            _ratio(self._errors @ weights, total),
        ]
        weighted = _weighted(per_class, confusion.sum(axis=1))
        return np.concatenate([per_class.reshape(-1, weights.shape[1]), macro, [recall], weighted, once])

    def _per_class(self, confusion: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(k, len(PER_CLASS), r)."""
        hits = np.einsum("kkr->kr", confusion)
        true, decided, total = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum(axis=(0, 1))
        values = np.stack(_rates(hits, true, decided, total), axis=1)
        ranked = np.stack([np.stack(ranking(weights)) for ranking in self._rankings])
        return np.concatenate([values, ranked], axis=1)


def confusion(probabilities: np.ndarray, targets: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Counts of an exclusive head's known rows: rows are true classes, columns decisions."""
    known = known_rows(targets)
    counts = np.zeros((targets.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (targets[known].argmax(axis=1), probabilities[known].argmax(axis=1)), 1)
    return tuple(tuple(int(count) for count in row) for row in counts)


def known_rows(targets: np.ndarray) -> np.ndarray:
    """bool (n,): rows of an exclusive head whose class is known, that is exactly one label is 1."""
    return ~np.isnan(targets).any(axis=1) & (np.nansum(targets, axis=1) == 1)


# -- independent ---------------------------------------------------------------------------------


class IndependentMeasures(Measures):
    """``probabilities`` and ``targets`` (n, k), each NaN target unknown for its label alone."""

    def __init__(
        self, head: HeadSpec, probabilities: np.ndarray, targets: np.ndarray, thresholds: Sequence[Threshold]
    ) -> None:
        decisions = decide({head.name: probabilities}, [head], thresholds)[head.name]
        self._labels = [
            _Label(probabilities[:, k].astype(np.float64), targets[:, k], decisions[:, k])
            for k in range(len(head.labels))
        ]
        self.names = tuple((label, metric) for label in (*head.labels, "macro") for metric in PER_LABEL)
        rows = [*(label.rows for label in self._labels), int((~np.isnan(targets)).any(axis=1).sum())]
        self.rows = tuple(count for count in rows for _ in PER_LABEL)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        per_label = np.stack([label(weights) for label in self._labels])
        return np.concatenate([per_label.reshape(-1, weights.shape[1]), _mean_of_defined(per_label)])


def label_counts(
    head: HeadSpec, probabilities: np.ndarray, targets: np.ndarray, thresholds: Sequence[Threshold]
) -> tuple[LabelCounts, ...]:
    """Right and wrong decisions of an independent head, (n, k) each, over the rows that are known for a label."""
    decisions = decide({head.name: probabilities}, [head], thresholds)[head.name]
    known, true = ~np.isnan(targets), targets > 0.5
    return tuple(
        LabelCounts(
            label=label,
            true_positives=int((known & true & decisions)[:, k].sum()),
            false_positives=int((known & ~true & decisions)[:, k].sum()),
            false_negatives=int((known & true & ~decisions)[:, k].sum()),
            true_negatives=int((known & ~true & ~decisions)[:, k].sum()),
        )
        for k, label in enumerate(head.labels)
    )


class _Label:
    """The metrics of one yes-or-no question, in the order of ``PER_LABEL``."""

    def __init__(self, scores: np.ndarray, targets: np.ndarray, decisions: np.ndarray) -> None:
        self._known = ~np.isnan(targets)
        scores, true, decided = scores[self._known], targets[self._known] > 0.5, decisions[self._known]
        self.rows = len(true)
        self._cells = np.stack([true & decided, true, decided], axis=1).astype(np.float64)
        self._ranking = Ranking(scores, true)
        self._gaps = _calibration_gaps(scores, true)
        self._errors = (scores - true) ** 2

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        weights = weights[self._known]
        total = weights.sum(axis=0)
        hits, true, decided = self._cells.T @ weights
        neither = total - true - decided + hits
        table = np.array([[hits, true - hits], [decided - hits, neither]])
        precision, recall, specificity, f1 = _rates(hits, true, decided, total)
        auroc, average_precision = self._ranking(weights)
        ece = _ratio(np.abs(self._gaps.T @ weights).sum(axis=0), total)
        brier = _ratio(self._errors @ weights, total)
        accuracy, balanced = _ratio(hits + neither, total), (recall + specificity) / 2
        ranked = (auroc, average_precision)
        return np.stack([accuracy, balanced, precision, recall, specificity, f1, *ranked, _kappa(table), ece, brier])


# -- masks ---------------------------------------------------------------------------------------


class MaskMeasures(Measures):
    """``scores`` (n, 2): Dice and IoU of each image, NaN where it has no mask."""

    names = tuple(("macro", metric) for metric in MASK)

    def __init__(self, scores: np.ndarray) -> None:
        self._known = ~np.isnan(scores).any(axis=1)
        self._scores = scores[self._known].astype(np.float64)
        self.rows = (len(self._scores),) * len(MASK)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        weights = weights[self._known]
        return _ratio(self._scores.T @ weights, weights.sum(axis=0))


def overlap(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice and IoU of each image, float32 (n, 2), from masks (n, height, width) of any type, set where above 0."""
    predicted = np.asarray(predicted).reshape(len(predicted), -1) > 0
    true = np.asarray(true).reshape(len(true), -1) > 0
    both = (predicted & true).sum(axis=1)
    either = (predicted | true).sum(axis=1)
    iou = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    dice = dice_from_counts(both, predicted.sum(axis=1), true.sum(axis=1))
    return np.stack([dice, iou], axis=1).astype(np.float32)


# -- parts ---------------------------------------------------------------------------------------


class Ranking:
    """Weighted AUROC and average precision of one question. The scores are sorted once, for all weights.

    AUROC is the share of (positive, negative) pairs in the right order, ties counting half (Hanley & McNeil 1982).
    Average precision is the sum of precision over steps of recall, without interpolation, as in scikit-learn.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._positive = positive[self._order].astype(np.float64)[:, None]
        differs = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        self._starts = np.flatnonzero(differs[: len(ranked)])

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(auroc, average precision), float64 (r,) each."""
        if not len(self._starts):
            nothing = np.full(weights.shape[1], np.nan)
            return nothing, nothing
        positive, negative = self._by_score(weights)
        hits, alarms = np.cumsum(positive, axis=0), np.cumsum(negative, axis=0)
        pairs = np.einsum("ir,ir->r", negative, hits - positive / 2)
        decided = hits + alarms
        precision = np.divide(hits, decided, out=np.zeros_like(hits), where=decided > 0)
        total = hits[-1]
        return _ratio(pairs, total * alarms[-1]), _ratio(np.einsum("ir,ir->r", positive, precision), total)

    def _by_score(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight of positives and of negatives at each distinct score, falling."""
        ranked = weights[self._order]
        positive = ranked * self._positive
        negative = ranked - positive
        if len(self._starts) == len(ranked):
            return positive, negative
        return np.add.reduceat(positive, self._starts, axis=0), np.add.reduceat(negative, self._starts, axis=0)


def _rates(
    hits: np.ndarray, true: np.ndarray, decided: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, specificity, F1 from weights; see the top of this module for what is undefined."""
    present = true > 0
    precision = np.where(present, np.divide(hits, decided, out=np.zeros_like(hits), where=decided > 0), np.nan)
    f1 = np.where(present, _ratio(2 * hits, true + decided), np.nan)
    return precision, _ratio(hits, true), _ratio(total - true - decided + hits, total - true), f1


def _kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa of confusions (k, k, r); NaN where chance alone would agree always."""
    total = confusion.sum(axis=(0, 1))
    agreed = _ratio(np.einsum("kkr->r", confusion), total)
    chance = _ratio((confusion.sum(axis=0) * confusion.sum(axis=1)).sum(axis=0), total**2)
    # Float dust must not pass for room above chance.
    return _ratio(agreed - chance, np.where(chance < 1 - 1e-12, 1 - chance, 0.0))


def _calibration_gaps(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(n, bins): confidence minus outcome, in the row's bin. ECE is the sum of |column sums| over rows."""
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    return _one_hot(bins, ECE_BINS) * (confidence - correct)[:, None]


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _weighted(per_class: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(len(WEIGHTED), r): means of (k, len(PER_CLASS), r) by ``images`` (k, r); an absent class weighs nothing."""
    values = per_class[:, [PER_CLASS.index(metric) for metric in WEIGHTED]]
    shares = np.where(np.isnan(values), 0.0, values) * images[:, None]
    return _ratio(shares.sum(axis=0), images.sum(axis=0))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.broadcast_arrays(np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _one_hot(index: np.ndarray, size: int) -> np.ndarray:
    hot = np.zeros((len(index), size))
    hot[np.arange(len(index)), index] = 1.0
    return hot


def values_by_name(measures: Measures, rows: int) -> Mapping[tuple[str, str], float]:
    """(label, metric) → plain value."""
    return dict(zip(measures.names, plain(measures, rows).tolist(), strict=True))

"""From logits to probabilities to decisions, and the calibration that fits both on validation rows.

numpy only: training, evaluation and the service call the same functions, so a threshold means the same in each.

Shapes, for ``n`` images::

    exclusive     logits, probabilities  float32 (n, labels)           decisions  int64 (n,), the class's index
    independent   logits, probabilities  float32 (n, labels)           decisions  bool  (n, labels)
    mask          logits, probabilities  float32 (n, 1, height, width) decisions  bool  (n, 1, height, width)

Targets of label heads are float32 (n, labels): 1, 0, or NaN for unknown. Unknown ones never count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from medflow import thresholds as cutting
from medflow.errors import DataError
from medflow.records import HeadSpec, OperatingPoint, Record, Temperature, Threshold

TEMPERATURE_MIN, TEMPERATURE_MAX = 0.25, 10.0
"""A validation set that is classified without an error would drive the temperature to 0: it stops here."""
MASK_CUTS = np.linspace(-4.0, 4.0, 33)
"""Logits at which a mask may be cut. In logits, so that the cuts do not move with the temperature."""
ROWS_AT_ONCE = 32
_LOGIT_EDGES = np.linspace(-30.0, 30.0, 6001)
_LOGIT_CENTRES = (_LOGIT_EDGES[:-1] + _LOGIT_EDGES[1:]) / 2


class Calibration(Record):
    """What turns the logits of one bundle into decisions; goes into its card."""

    thresholds: tuple[Threshold, ...]
    temperatures: tuple[Temperature, ...]


# -- activation and decision ---------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, same floating type (float32 for others). Stable for any finite logits."""
    shifted = _floating(logits) - np.max(logits, axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Elementwise logistic function, same floating type (float32 for others). Never overflows."""
    # exp(-|x|) cannot overflow; the two branches are 1/(1+e) and e/(1+e).
    values = _floating(logits)
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, values.dtype.type(1), small) / (1 + small)


def probabilities(
    logits: Mapping[str, np.ndarray], heads: Sequence[HeadSpec], temperatures: Sequence[Temperature]
) -> dict[str, np.ndarray]:
    """Probabilities by head, float32, in the shape of the logits. A head without a temperature has 1.

    Raises DataError where a head's logits are absent, misshapen or not finite.
    """
    divide = {item.head: item.value for item in temperatures}
    result = {}
    for head in heads:
        values = _logits_of(logits, head) / np.float32(divide.get(head.name, 1.0))
        result[head.name] = softmax(values) if head.kind == "exclusive" else sigmoid(values)
    return result


def decide(
    probabilities: Mapping[str, np.ndarray], heads: Sequence[HeadSpec], thresholds: Sequence[Threshold]
) -> dict[str, np.ndarray]:
    """Decisions by head (shapes: top of this module).

    An exclusive head takes the most probable class, the first of equals. The others say yes at or above
    the label's threshold; a label without one is cut at 0.5.
    """
    result = {}
    for head in heads:
        if head.name not in probabilities:
            raise _absent(head, probabilities)
        values = probabilities[head.name]
        if head.kind == "exclusive":
            result[head.name] = np.argmax(values, axis=-1)
            continue
        cuts = threshold_values(head, thresholds)
        # float64 cuts: as Python floats they would be rounded to float32 and could swallow a neighbour.
        result[head.name] = values >= (cuts if head.kind == "independent" else cuts[0])
    return result


def threshold_values(head: HeadSpec, thresholds: Sequence[Threshold]) -> np.ndarray:
    """One threshold for each label of a head, float64 (labels,), in label order."""
    known = {item.label: item.value for item in thresholds if item.head == head.name}
    return np.array([known.get(label, cutting.DEFAULT) for label in head.labels], dtype=np.float64)


# -- calibration ---------------------------------------------------------------------------------


def calibrate(
    logits: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    heads: Sequence[HeadSpec],
    masks: Mapping[str, np.ndarray] | None = None,
    has_mask: np.ndarray | None = None,
    operating_point: OperatingPoint = cutting.YOUDEN,
) -> Calibration:
    """Temperature of each head and threshold of each label, fitted on validation rows.

    ``masks[head]`` is uint8 (n, height, width), 0 or 1, and ``has_mask`` bool (n,) says which rows count (all,
    if None). Large mask logits may be a memory map: rows are read a few at a time. Where they do not fit at all,
    feed a ``Calibrator`` batch by batch instead.
    """
    calibrator = Calibrator(heads, operating_point)
    for rows in _slices(len(next(iter(logits.values())))):
        calibrator.add(
            {name: values[rows] for name, values in logits.items()},
            {name: values[rows] for name, values in targets.items()},
            {name: values[rows] for name, values in (masks or {}).items()},
            None if has_mask is None else has_mask[rows],
        )
    return calibrator.fit()


class Calibrator:
    """``calibrate`` fed batch by batch. Keeps label logits, and for each mask only 33 pairs of counts."""

    def __init__(self, heads: Sequence[HeadSpec], operating_point: OperatingPoint = cutting.YOUDEN) -> None:
        self._heads = tuple(heads)
        self._operating_point = operating_point
        self._labels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
            head.name: [] for head in heads if head.kind != "mask"
        }
        self._masks = {head.name: _MaskTally() for head in heads if head.kind == "mask"}

    def add(
        self,
        logits: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray] | None = None,
        has_mask: np.ndarray | None = None,
    ) -> None:
        """One batch; arguments as in ``calibrate``. Raises DataError where shapes disagree."""
        for head in self._heads:
            values = _logits_of(logits, head)
            if head.kind == "mask":
                self._masks[head.name].add(values, _truth_of(masks or {}, head, len(values)), has_mask)
            else:
                truth = _truth_of(targets, head, len(values))
                self._labels[head.name].append((values.astype(np.float64), truth.astype(np.float64)))

    def fit(self) -> Calibration:
        """What the batches so far say. The same batches in any grouping give the same result."""
        thresholds: list[Threshold] = []
        temperatures: list[Temperature] = []
        for head in self._heads:
            temperature, cuts = self._fit_mask(head) if head.kind == "mask" else self._fit_labels(head)
            temperatures.append(Temperature(head=head.name, value=temperature))
            thresholds.extend(cuts)
        return Calibration(thresholds=tuple(thresholds), temperatures=tuple(temperatures))

    def _fit_labels(self, head: HeadSpec) -> tuple[float, list[Threshold]]:
        if not self._labels[head.name]:
            return 1.0, _default_thresholds(head)
        logits = np.concatenate([values for values, _ in self._labels[head.name]])
        targets = np.concatenate([truth for _, truth in self._labels[head.name]])
        if head.kind == "exclusive":
            return _exclusive_temperature(logits, targets), _argmax_thresholds(head)
        temperature = _independent_temperature(logits, targets)
        # float32 on purpose: the threshold must separate the numbers that `decide` will see.
        scores = sigmoid(logits.astype(np.float32) / np.float32(temperature))
        columns = zip(head.labels, scores.T, targets.T, strict=True)
        point = self._operating_point
        return temperature, [cutting.fitted(point, head.name, label, score, truth) for label, score, truth in columns]

    def _fit_mask(self, head: HeadSpec) -> tuple[float, list[Threshold]]:
        tally = self._masks[head.name]
        if not tally.images:
            return 1.0, _default_thresholds(head)
        temperature = tally.temperature()
        # A hair below the cut, so that rounding of logit / temperature cannot drop a pixel that lies on it.
        value = float(sigmoid(np.array((tally.best_cut() - 1e-6) / temperature)))
        return temperature, [Threshold(head=head.name, label=head.labels[0], value=value, rule="dice")]


def dice_from_counts(both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice of each image from pixel counts: 2·both / (predicted + true), and 1 where both masks are empty."""
    total = predicted + true
    return np.where(total == 0, 1.0, 2.0 * both / np.maximum(total, 1))


class _MaskTally:
    """Counts that are enough to fit temperature and threshold of a mask head, whatever the number of pixels."""

    def __init__(self) -> None:
        self.images = 0
        self._both: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._true: list[int] = []
        self._on = np.zeros(len(_LOGIT_CENTRES), dtype=np.int64)
        self._off = np.zeros(len(_LOGIT_CENTRES), dtype=np.int64)

    def add(self, logits: np.ndarray, masks: np.ndarray, has_mask: np.ndarray | None) -> None:
        for row in range(len(logits)):
            if has_mask is None or has_mask[row]:
                self._add_image(np.asarray(logits[row], dtype=np.float64).ravel(), masks[row].ravel() > 0)

    def _add_image(self, logits: np.ndarray, true: np.ndarray) -> None:
        if len(logits) != len(true):
            raise DataError(
                f"mask logits have {len(logits)} pixels an image, its mask has {len(true)}",
                hint="score the images at the size that the masks are stored in",
            )
        # bin k holds the pixels at or above cut k - 1 and below cut k
        bins = np.searchsorted(MASK_CUTS, logits, side="right")
        at_or_above = _counts_above(bins, len(MASK_CUTS))
        self._predicted.append(at_or_above)
        self._both.append(_counts_above(bins[true], len(MASK_CUTS)))
        self._true.append(int(true.sum()))
        fine = _fine_bins(logits)
        self._on += np.bincount(fine[true], minlength=len(_LOGIT_CENTRES))
        self._off += np.bincount(fine[~true], minlength=len(_LOGIT_CENTRES))
        self.images += 1

    def best_cut(self) -> float:
        """The logit with the best mean Dice over images; of equals, the one nearest to 0 (probability 0.5)."""
        true = np.array(self._true)[:, None]
        mean = dice_from_counts(np.array(self._both), np.array(self._predicted), true).mean(axis=0)
        best = np.flatnonzero(mean >= mean.max() - 1e-12)
        return float(MASK_CUTS[best[np.argmin(np.abs(MASK_CUTS[best]))]])

    def temperature(self) -> float:
        """From logits rounded to 0.01 and clipped to ±30: the sum over millions of pixels in constant memory."""
        on, off = self._on.astype(np.float64), self._off.astype(np.float64)

        def loss(inverse: float) -> float:
            scaled = _LOGIT_CENTRES * inverse
            return float(np.sum(on * np.logaddexp(0.0, -scaled)) + np.sum(off * np.logaddexp(0.0, scaled)))

        return _best_temperature(loss)


def _counts_above(bins: np.ndarray, cuts: int) -> np.ndarray:
    counts = np.bincount(bins, minlength=cuts + 1)
    return np.cumsum(counts[::-1])[::-1][1:]


def _fine_bins(logits: np.ndarray) -> np.ndarray:
    scale = (len(_LOGIT_EDGES) - 1) / (_LOGIT_EDGES[-1] - _LOGIT_EDGES[0])
    return np.clip((logits - _LOGIT_EDGES[0]) * scale, 0, len(_LOGIT_CENTRES) - 1).astype(np.int64)


# -- temperature ---------------------------------------------------------------------------------


def _exclusive_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    known = ~np.isnan(targets).any(axis=1) & (np.nansum(targets, axis=1) == 1)
    if not known.any():
        return 1.0
    logits, truth = logits[known], targets[known].argmax(axis=1)
    logits = logits - logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(truth)), truth]

    def loss(inverse: float) -> float:
        return float(np.sum(np.log(np.exp(logits * inverse).sum(axis=1)) - chosen * inverse))

    return _best_temperature(loss)


def _independent_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    known = ~np.isnan(targets)
    if not known.any():
        return 1.0
    signed = np.where(targets[known] > 0.5, logits[known], -logits[known])

    def loss(inverse: float) -> float:
        return float(np.sum(np.logaddexp(0.0, -signed * inverse)))

    return _best_temperature(loss)


def _best_temperature(loss: Callable[[float], float], tolerance: float = 1e-6) -> float:
    """Golden-section search on log temperature for the least negative log-likelihood.

    The loss is convex in 1 / temperature (Guo et al. 2017), so it has one valley and the search cannot
    end in another. ``loss`` takes 1 / temperature.
    """
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    low, high = np.log(TEMPERATURE_MIN), np.log(TEMPERATURE_MAX)
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(float(np.exp(-left))), loss(float(np.exp(-right)))
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(float(np.exp(-left)))
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(float(np.exp(-right)))
    return round(float(np.exp((low + high) / 2.0)), 6)


# -- thresholds ----------------------------------------------------------------------------------


def _argmax_thresholds(head: HeadSpec) -> list[Threshold]:
    """Recorded, not applied: no class can win below one over the number of classes."""
    value = 1.0 / len(head.labels)
    return [Threshold(head=head.name, label=label, value=value, rule="argmax") for label in head.labels]


def _default_thresholds(head: HeadSpec) -> list[Threshold]:
    if head.kind == "exclusive":
        return _argmax_thresholds(head)
    return [Threshold(head=head.name, label=label, value=cutting.DEFAULT, rule="default") for label in head.labels]


# -- what comes in -------------------------------------------------------------------------------


def _floating(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _slices(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, start + ROWS_AT_ONCE)


def _logits_of(logits: Mapping[str, np.ndarray], head: HeadSpec) -> np.ndarray:
    if head.name not in logits:
        raise _absent(head, logits)
    values = np.asarray(logits[head.name], dtype=np.float32)
    wanted = 4 if head.kind == "mask" else 2
    if values.ndim != wanted or values.shape[1] != len(head.labels):
        shape = "(n, 1, height, width)" if head.kind == "mask" else f"(n, {len(head.labels)})"
        raise DataError(
            f"logits of head {head.name!r} have shape {values.shape}, expected {shape}",
            hint="the heads of the model's card and the model's outputs must be the same",
        )
    # min and max carry NaN and infinity, and need no second array of the size of the logits.
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise DataError(
            f"logits of head {head.name!r} are not all finite numbers",
            hint="the model has diverged; train it again with a smaller learning rate",
        )
    return values


def _truth_of(truths: Mapping[str, np.ndarray], head: HeadSpec, rows: int) -> np.ndarray:
    if head.name not in truths:
        raise _absent(head, truths)
    if len(truths[head.name]) != rows:
        raise DataError(
            f"head {head.name!r} has {rows} rows of logits and {len(truths[head.name])} of truth",
            hint="pass both for the same images, in the same order",
        )
    return truths[head.name]


def _absent(head: HeadSpec, given: Mapping[str, np.ndarray]) -> DataError:
    return DataError(
        f"nothing for head {head.name!r}; there is {', '.join(sorted(given)) or 'nothing'}",
        hint="the heads of the model's card and the model's outputs must be the same",
    )

"""What training measures on validation rows, and what it watches of that.

One number says which weights are best, and one when to stop; unless told otherwise, they are the same.

The metrics are those of ``medflow.metrics``, so what training maximises is what evaluation reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medflow.decisions import probabilities
from medflow.errors import ConfigError
from medflow.metrics import (
    MASK,
    PER_LABEL,
    ExclusiveMeasures,
    IndependentMeasures,
    Measures,
    orientation,
    overlap,
    values_by_name,
)
from medflow.records import HeadSpec

LOSS = "loss"
#: What is kept of every epoch, where the head has it.
KEPT = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", *MASK)


class Monitor:
    """The metrics of every head, of which one is watched: larger is better, what is smaller-is-better is negated.

    ``auto`` is the macro AUROC of the label head, the Dice of the mask head where there is no label head,
    and the negated loss where validation rows cannot define either.
    Raises ConfigError for a metric that none of the heads has.
    """

    def __init__(
        self,
        metric: str,
        heads: Sequence[HeadSpec],
        targets: Mapping[str, np.ndarray],
        rows: int,
        stop_on: str | None = None,
    ) -> None:
        """``targets`` are those of the validation rows' label heads, ``rows`` how many they are.

        ``stop_on`` is the metric that says when to stop; None is ``metric``.
        """
        self._label = next((head for head in heads if head.kind != "mask"), None)
        self._mask = next((head for head in heads if head.kind == "mask"), None)
        self.name = self._metric("train.monitor", metric, targets)
        self.stops_on = self.name if stop_on is None else self._metric("train.stop_on", stop_on, targets)
        self._heads = tuple(heads)
        self._targets = targets
        self._rows = rows
        self.reset()

    def _metric(self, setting: str, metric: str, targets: Mapping[str, np.ndarray]) -> str:
        """What ``auto`` stands for, and any other metric that there is."""
        label = self._label
        if metric == "auto":
            return ("auroc" if _ranks(targets[label.name]) else LOSS) if label else "dice"
        known = (*(PER_LABEL if label else ()), *(MASK if self._mask else ()), LOSS)
        if metric not in known:
            raise ConfigError(f"{setting} is {metric!r}, which no head has", hint=f"expected one of {', '.join(known)}")
        return metric

    def reset(self) -> None:
        """Begin another walk over the validation rows."""
        widths = {head.name: len(MASK) if head.kind == "mask" else len(head.labels) for head in self._heads}
        # 0 where nothing is known, so that what several processes have filled can be added up.
        self._values = {name: np.zeros((self._rows, width), np.float32) for name, width in widths.items()}
        self._counted = {head.name: np.zeros(self._rows, np.float32) for head in self._heads if head.kind == "mask"}

    def add(
        self,
        rows: np.ndarray,
        logits: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> None:
        """Some validation rows, int64 (n,), and what the network says of them; shapes as in ``medflow.heads``."""
        for name, values in self._values.items():
            if name not in self._counted:
                values[rows] = logits[name]
                continue
            counted = known[name]
            values[rows[counted]] = overlap(logits[name][counted, 0] >= 0.0, targets[name][counted])
            self._counted[name][rows[counted]] = 1.0

    def merge(self, merged: Callable[[np.ndarray], np.ndarray]) -> None:
        """Make one of what several processes have added, by ``Machine.merged``."""
        self._values = {name: merged(values) for name, values in self._values.items()}
        self._counted = {name: merged(counted) for name, counted in self._counted.items()}

    def score(self, loss: float) -> float:
        """The monitored value over all batches since ``reset``; ``loss`` where it is undefined, negated."""
        return self._watched(self.name, loss)

    def stop_score(self, loss: float) -> float:
        """The same of what says when to stop."""
        return self._watched(self.stops_on, loss)

    def _watched(self, metric: str, loss: float) -> float:
        head = None if metric == LOSS else self._mask if metric in MASK else self._label
        value = float("nan") if head is None else orientation(metric) * self._of(head)[metric]
        return -loss if np.isnan(value) else value

    def scores(self) -> dict[str, float]:
        """``<head>/<metric>`` → its value over the whole head, of those of ``KEPT`` that are defined."""
        found = {f"{head.name}/{name}": value for head in self._heads for name, value in self._of(head).items()}
        return {name: value for name, value in found.items() if name.rpartition("/")[2] in KEPT and value == value}

    def _of(self, head: HeadSpec) -> dict[str, float]:
        """Every metric over a whole head, NaN where undefined."""
        values = self._values[head.name]
        if head.kind == "mask":
            counted = values[self._counted[head.name] > 0]
            return {
                name: float(counted[:, place].mean()) if len(counted) else float("nan")
                for place, name in enumerate(MASK)
            }
        targets = self._targets[head.name]
        return _aggregates(_measures(head, values, targets), len(targets))


def _measures(head: HeadSpec, logits: np.ndarray, targets: np.ndarray) -> Measures:
    scores = probabilities({head.name: logits}, [head], ())[head.name]
    if head.kind == "exclusive":
        return ExclusiveMeasures(head, scores, targets)
    return IndependentMeasures(head, scores, targets, ())


def _aggregates(measures: Measures, rows: int) -> dict[str, float]:
    """Each metric over the whole head: its macro mean, or micro where it has no macro."""
    values = values_by_name(measures, rows)
    found = {metric: value for (label, metric), value in values.items() if label == "micro"}
    return found | {metric: value for (label, metric), value in values.items() if label == "macro"}


def _ranks(targets: np.ndarray) -> bool:
    """Whether any label has both a positive and a negative."""
    return bool(((targets == 1).any(axis=0) & (targets == 0).any(axis=0)).any())

"""The number that training watches on validation rows: which weights are best, and when to stop.

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


class Monitor:
    """One metric of one head, larger is better: smaller-is-better metrics and the loss are negated.

    ``auto`` is the macro AUROC of the label head, the Dice of the mask head where there is no label head,
    and the negated loss where validation rows cannot define either.
    Raises ConfigError for a metric that none of the heads has.
    """

    def __init__(self, metric: str, heads: Sequence[HeadSpec], targets: Mapping[str, np.ndarray], rows: int) -> None:
        """``targets`` are those of the validation rows' label heads, ``rows`` how many they are."""
        label = next((head for head in heads if head.kind != "mask"), None)
        mask = next((head for head in heads if head.kind == "mask"), None)
        known = (*(PER_LABEL if label else ()), *(MASK if mask else ()), LOSS)
        if metric == "auto":
            metric = ("auroc" if _ranks(targets[label.name]) else LOSS) if label else "dice"
        if metric not in known:
            raise ConfigError(
                f"train.monitor is {metric!r}, which no head has", hint=f"expected one of {', '.join(known)}"
            )
        self.name = metric
        self._head = None if metric == LOSS else mask if metric in MASK else label
        self._targets = targets
        self._rows = rows
        self.reset()

    def reset(self) -> None:
        """Begin another walk over the validation rows."""
        width = 0 if self._head is None else len(MASK) if self._head.kind == "mask" else len(self._head.labels)
        # 0 where nothing is known, so that what several processes have filled can be added up.
        self._values = np.zeros((self._rows, width), np.float32)
        self._counted = np.zeros(self._rows, np.float32)

    def add(
        self,
        rows: np.ndarray,
        logits: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
    ) -> None:
        """Some validation rows, int64 (n,), and what the network says of them; shapes as in ``medflow.heads``."""
        if self._head is None:
            return
        name = self._head.name
        if self._head.kind == "mask":
            counted = known[name]
            self._values[rows[counted]] = overlap(logits[name][counted, 0] >= 0.0, targets[name][counted])
            self._counted[rows[counted]] = 1.0
        else:
            self._values[rows] = logits[name]

    def merge(self, merged: Callable[[np.ndarray], np.ndarray]) -> None:
        """Make one of what several processes have added, by ``Machine.merged``."""
        self._values, self._counted = merged(self._values), merged(self._counted)

    def score(self, loss: float) -> float:
        """The monitored value over all batches since ``reset``; ``loss`` where it is undefined, negated."""
        value = self._value()
        return -loss if np.isnan(value) else value

    def _value(self) -> float:
        if self._head is None:
            return float("nan")
        if self._head.kind == "mask":
            values = self._values[self._counted > 0, MASK.index(self.name)]
            return float(values.mean()) if len(values) else float("nan")
        measures = _measures(self._head, self._values, self._targets[self._head.name])
        return orientation(self.name) * _aggregate(measures, self.name, len(self._targets[self._head.name]))


def _measures(head: HeadSpec, logits: np.ndarray, targets: np.ndarray) -> Measures:
    scores = probabilities({head.name: logits}, [head], ())[head.name]
    if head.kind == "exclusive":
        return ExclusiveMeasures(head, scores, targets)
    return IndependentMeasures(head, scores, targets, ())


def _aggregate(measures: Measures, metric: str, rows: int) -> float:
    """The metric over the whole head: its macro mean, or micro where it has no macro."""
    values = values_by_name(measures, rows)
    return values["macro" if ("macro", metric) in values else "micro", metric]


def _ranks(targets: np.ndarray) -> bool:
    """Whether any label has both a positive and a negative."""
    return bool(((targets == 1).any(axis=0) & (targets == 0).any(axis=0)).any())

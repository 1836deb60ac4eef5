"""What a system reached on the test rows, and the paired difference of two, both with intervals by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from medflow import metrics
from medflow.bootstrap import resamples
from medflow.records import HeadSpec, Predictions

RESAMPLES = 2000
CONFIDENCE = 0.95


class Reached(BaseModel):
    """One metric over all seeds: the mean over the seeds, resampled by group within each."""

    metric: str
    value: float
    low: float
    high: float


class Line(BaseModel):
    """One row of the table: a system's metric on both sides, and ours minus theirs."""

    system: str
    head: str
    ours: Reached
    theirs: Reached
    difference: Reached

    @property
    def above_chance(self) -> bool:
        """The interval of an AUROC excludes 0.5, and a Dice's excludes 0."""
        return self.ours.low > (0.5 if self.ours.metric == "auroc" else 0.0)

    @property
    def behind(self) -> bool:
        return self.difference.high < 0.0


def compare(system: str, ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> list[Line]:
    """One line for each head; ``ours[i]`` and ``theirs[i]`` are of seed i and of the same rows."""
    return [_line(system, head, ours, theirs) for head in ours[0].heads]


def _line(system: str, head: HeadSpec, ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> Line:
    metric = "dice" if head.kind == "mask" else "auroc"
    new = np.mean([_samples(item, head, metric, seed) for seed, item in enumerate(ours)], axis=0)
    old = np.mean([_samples(item, head, metric, seed) for seed, item in enumerate(theirs)], axis=0)
    return Line(
        system=system,
        head=head.name,
        ours=_reached(metric, new),
        theirs=_reached(metric, old),
        difference=_reached(metric, new - old),
    )


def _samples(predictions: Predictions, head: HeadSpec, metric: str, seed: int) -> np.ndarray:
    """The plain value first, then one for each resample; the same resamples for both sides of a seed."""
    measures = metrics.of_head(predictions, head)
    name = ("macro", metric) if ("macro", metric) in measures.names else ("micro", metric)
    place = measures.names.index(name)
    plain = metrics.plain(measures, len(predictions))[[place]]
    parts = [measures(weights)[place] for weights in resamples(predictions.group, RESAMPLES, seed)]
    return np.concatenate([plain, *parts])


def _reached(metric: str, samples: np.ndarray) -> Reached:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(samples[1:], [tail, 1.0 - tail])
    return Reached(metric=metric, value=float(samples[0]), low=float(low), high=float(high))

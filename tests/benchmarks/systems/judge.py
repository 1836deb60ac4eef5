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


def compare(system: str, head: HeadSpec, ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> Line:
    """``ours[i]`` and ``theirs[i]`` are of seed i and of the same rows."""
    new, old = _samples_of(head, ours), _samples_of(head, theirs)
    return Line(
        system=system,
        head=head.name,
        ours=_reached(head, new),
        theirs=_reached(head, old),
        difference=_reached(head, new - old),
    )


def reached(head: HeadSpec, said: Sequence[Predictions]) -> Reached:
    return _reached(head, _samples_of(head, said))


def _metric(head: HeadSpec) -> str:
    return "dice" if head.kind == "mask" else "auroc"


def _samples_of(head: HeadSpec, said: Sequence[Predictions]) -> np.ndarray:
    return np.mean([_samples(item, head, _metric(head), seed) for seed, item in enumerate(said)], axis=0)


def _samples(predictions: Predictions, head: HeadSpec, metric: str, seed: int) -> np.ndarray:
    """The plain value first, then one for each resample; the same resamples for both sides of a seed."""
    measures = metrics.of_head(predictions, head)
    name = ("macro", metric) if ("macro", metric) in measures.names else ("micro", metric)
    place = measures.names.index(name)
    plain = metrics.plain(measures, len(predictions))[[place]]
    parts = [measures(weights)[place] for weights in resamples(predictions.group, RESAMPLES, seed)]
    return np.concatenate([plain, *parts])


def _reached(head: HeadSpec, samples: np.ndarray) -> Reached:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(samples[1:], [tail, 1.0 - tail])
    return Reached(metric=_metric(head), value=float(samples[0]), low=float(low), high=float(high))

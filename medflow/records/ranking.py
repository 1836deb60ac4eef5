"""Models in the order of one metric."""

from __future__ import annotations

from typing import Literal

from medflow.records.base import Record
from medflow.records.evaluation import RowsRole


class Ranked(Record):
    """One model's place, and its paired difference to the best; positive would be better than the best."""

    name: str
    made: str
    variant: str
    value: float
    low: float
    high: float
    n: int
    bytes: int
    difference: float
    difference_low: float
    difference_high: float
    verdict: Literal["best", "tie", "worse", "not comparable"]
    """``tie``: the interval of the difference covers 0, so it is not shown to be worse."""


class Ranking(Record):
    dataset: str
    role: RowsRole
    rows_digest: str
    head: str
    metric: str
    label: str
    confidence: float
    ranked: tuple[Ranked, ...]
    """Best first."""
    apart: tuple[str, ...] = ()
    """What could not be ranked with them, and why."""

    def what(self) -> str:
        """What it is by, in words."""
        return f"{self.head} {self.metric} ({self.label})"

    def of(self, name: str) -> Ranked | None:
        """The place of one model; None where it could not be ranked."""
        return next((item for item in self.ranked if item.name == name), None)

    def winner(self) -> str:
        """The outcome in one sentence."""
        best = self.ranked[0]
        ties = [item.name for item in self.ranked if item.verdict == "tie"]
        if len(self.ranked) == 1:
            return f"{best.name} is the only model on these rows"
        if ties:
            return f"best is {best.name}, and not shown to be better than {', '.join(ties)}"
        return f"best is {best.name}, better than each of the others"

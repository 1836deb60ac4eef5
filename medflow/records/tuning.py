"""What a search over settings found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from medflow.records.base import BESIDE, Record


class Trial(Record):
    """One training with settings that the search drew."""

    number: int
    """From 1, in the order in which trials were finished."""
    state: Literal["complete", "pruned", "failed"]
    values: Mapping[str, Any]
    """By setting, as the search space names it."""
    score: float | None
    """Best validation score, larger is better; of a pruned trial the last one."""
    epochs: int
    reason: str = ""
    seconds: Annotated[float, BESIDE] = 0.0


class TuneResult(Record):
    study: str
    dataset: str
    model: str
    monitor: str
    """The metric that was maximised on validation rows; negated where smaller is better."""
    seed: int
    trials: tuple[Trial, ...]
    best: int
    """Number of the best trial."""
    importance: Mapping[str, float] = {}
    """Share of the score's variance that a setting explains (fANOVA, Hutter et al. 2014); empty for few trials."""

    def winner(self) -> Trial:
        return self.trials[self.best - 1]

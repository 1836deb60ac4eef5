"""What `medflow tune` searches: a YAML of its own, ``configs/recipes/search/*.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Section

Plain = bool | int | float | str | None


class Dimension(Section):
    """The values that one setting may take."""

    kind: Literal["float", "log", "int", "choice"]
    """`log` draws evenly over orders of magnitude."""
    low: float | None = None
    """Smallest value, itself possible; not for `choice`."""
    high: float | None = None
    values: tuple[Plain | tuple[Plain, ...], ...] = ()
    """The values of a `choice`."""

    @model_validator(mode="after")
    def _bounded(self) -> Dimension:
        if self.kind == "choice":
            if len(self.values) < 2 or (self.low, self.high) != (None, None):
                raise ValueError("a choice has at least two `values`, and neither `low` nor `high`")
            return self
        if self.values or self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"{self.kind} needs `low` below `high`, and no `values`")
        if self.kind == "log" and self.low <= 0:
            raise ValueError("log needs a `low` above 0")
        if self.kind == "int" and (self.low % 1 or self.high % 1):
            raise ValueError("int needs whole numbers for `low` and `high`")
        return self

    def ends(self) -> tuple[object, ...]:
        """The values that must be possible for all to be: both bounds, or every choice."""
        if self.kind == "choice":
            return self.values
        number = int if self.kind == "int" else float
        return tuple(number(value) for value in (self.low, self.high) if value is not None)


class SearchConfig(Section):
    seed: int = Field(0, ge=0)
    pruner: Literal["median", "hyperband", "none"] = "median"
    """`median` ends a trial that is worse at an epoch than half of those before it were there. `hyperband` (Li et al.
    2018, JMLR 18:185) lets the best third of a bracket go on at each rung; a search that was killed goes on, but need
    not end as one that was not."""
    startup: int = Field(5, ge=1)
    """Trials drawn at random before the search learns from them (with `hyperband`, of each bracket), and with `median`
    finished before any is pruned."""
    warmup: int = Field(1, ge=0)
    """Epochs of a trial before `median` may prune it; `hyperband` has rungs of its own."""
    space: dict[str, Dimension] = Field(min_length=1)
    """By setting, such as `train.stages.0.lr`; short forms as on the command line."""


class TuneBudget(Section):
    """How long to search: no part of what is searched, so a study goes on with another."""

    trials: int = Field(20, ge=1, le=100_000)
    """Of the whole study, those of earlier calls included."""
    seconds: float = Field(float("1e9"), gt=0)
    """No trial of this call begins later."""

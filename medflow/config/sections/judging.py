"""What is measured and what it decides: `evaluate`, `select`, `promote`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medflow.config.sections.base import Section


class EvaluateConfig(Section):
    resamples: int = Field(1000, ge=100, le=100_000)
    """Bootstrap resamples of groups."""
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    seed: int = 0
    batch_size: int = Field(32, ge=1)


class SelectConfig(Section):
    metric: str = "auroc"
    """Macro metric on validation rows by which models are ranked; larger is better."""


class Floor(Section):
    metric: str
    value: float
    label: str = "macro"
    head: str | None = None


class PromoteConfig(Section):
    stage: Literal["staging", "production"] = "production"
    metric: str = "auroc"
    margin: float = Field(0.02, ge=0)
    """Non-inferiority: the interval of candidate minus incumbent must lie above minus this."""
    floors: tuple[Floor, ...] = ()
    """Values that the lower end of the candidate's interval must reach on test rows."""
    unseen_groups: int = Field(20, ge=2)
    """Where the incumbent learnt from some of the test rows, it is compared on the others alone, and not where these
    have fewer groups than this."""
    resamples: int = Field(2000, ge=100, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    seed: int = 0

"""Numbers with their intervals, and the choices made by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from medflow.errors import DataError
from medflow.records.base import BESIDE, Record
from medflow.records.dataset import Source
from medflow.records.findings import Finding

RowsRole = Literal["val", "test", "external"]
"""What rows are to a model; ``external``: labelled images from elsewhere, which no run split."""
WHOLE_HEAD = ("macro", "micro", "weighted")
"""Labels of a score that is over a whole head and not of one class."""


class Score(Record):
    """One number with its interval. ``label`` is ``macro``, ``micro``, ``weighted`` or a class name."""

    head: str
    label: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    """Images (mask heads: images with a mask) that the number is over."""


class LabelCounts(Record):
    """Images by what is true and what was said of one label, at its threshold. Unknown ones are in none."""

    label: str
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


class Evaluation(Record):
    bundle_digest: str
    rows_digest: str
    model: str
    variant: str
    role: RowsRole
    scores: tuple[Score, ...]
    confusion: Mapping[str, tuple[tuple[int, ...], ...]] = Field(default_factory=dict)
    """Exclusive heads: rows are true classes, columns decisions, in label order."""
    counts: Mapping[str, tuple[LabelCounts, ...]] = Field(default_factory=dict)
    """Independent heads: right and wrong decisions by label, in label order."""
    confidence: float = 0.95
    starts: tuple[str, ...] = ()
    """As in the bundle's card: what these rows may have been known to before its training."""
    bytes: int = 0
    latency_ms: Annotated[float | None, BESIDE] = None

    def score(self, metric: str, *, head: str | None = None, label: str = "macro") -> Score:
        """One score. Raises DataError naming what there is.

        ``macro`` falls back to ``micro``, for the metrics that an exclusive head has once, over all images
        (accuracy, kappa, ece, brier).
        """
        for wanted in (label, "micro") if label == "macro" else (label,):
            for item in self.scores:
                if item.metric == metric and item.label == wanted and head in (None, item.head):
                    return item
        known = sorted({f"{item.head}.{item.metric}" for item in self.scores})
        raise DataError(
            f"no score {metric!r} for label {label!r}; there is {', '.join(known)}", hint="choose one of them"
        )


class Verdict(Record):
    """Why one variant was, or was not, taken by ``choose``."""

    variant: str
    chosen: bool
    reason: str
    metric: str
    value: float
    loss: float
    """Metric of the reference minus this variant's; positive is worse."""
    bytes: int
    latency_ms: Annotated[float | None, BESIDE] = None


class Choice(Record):
    """What ``select`` or ``choose`` decided, from validation rows only."""

    chosen: str
    verdicts: tuple[Verdict, ...]


class LeftOut(Record):
    """Images that were not judged, and why."""

    reason: str
    images: int
    examples: tuple[str, ...]
    """Image ids, five at most."""


class ExternalEvaluation(Record):
    """What a finished model is worth on labelled images from elsewhere."""

    model: str
    dataset: str
    """The dataset whose reader listed the images."""
    source: Source
    images: int
    """That were listed."""
    left_out: tuple[LeftOut, ...]
    judged: int
    groups: int
    compared: int | None
    """Images that the model was fitted on, with which these were compared; None where those are not known."""
    notes: tuple[str, ...]
    """Facts without which the scores would be misread."""
    findings: tuple[Finding, ...]
    evaluation: Evaluation

"""What a head's error costs: `train.losses`, one entry a head or kind of head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medflow.config.sections.base import Fraction, Positive, Section

LossKind = Literal["cross_entropy", "focal", "asymmetric", "dice", "tversky"]
HeadKind = Literal["exclusive", "independent", "mask"]

#: Which kinds of head a loss is defined for.
FITS: Final[Mapping[LossKind, tuple[HeadKind, ...]]] = {
    "cross_entropy": ("exclusive", "independent", "mask"),
    "focal": ("exclusive", "independent", "mask"),
    "asymmetric": ("independent",),
    "dice": ("mask",),
    "tversky": ("mask",),
}
_TAKES: Final[Mapping[LossKind, tuple[str, ...]]] = {
    "cross_entropy": (),
    "focal": ("gamma", "alpha"),
    "asymmetric": ("gamma", "gamma_negative", "margin"),
    "dice": (),
    "tversky": ("alpha", "beta"),
}


class Loss(Section):
    """One loss, or one term of a weighted sum. What is left out has the value of the loss's paper."""

    kind: LossKind
    """`cross_entropy`, `focal` (any head), `asymmetric` (independent labels), `dice`, `tversky` (masks)."""
    weight: Positive = 1.0
    """In a sum of several; beside other heads, `train.loss_weights` counts."""
    gamma: float | None = Field(None, ge=0)
    """How much less easy examples count: focal 2 (0 is cross entropy); asymmetric 1, for positives."""
    gamma_negative: float | None = Field(None, ge=0)
    """Asymmetric: the same for negatives, 4."""
    margin: Fraction | None = None
    """Asymmetric: negatives below this probability cost nothing, 0.05."""
    alpha: Fraction | None = None
    """Focal, not for exclusive heads: weight of positives, with 1 - alpha for negatives; left out, the weights of
    `train.class_weights` count. Tversky: weight of false positives, 0.3."""
    beta: Fraction | None = None
    """Tversky: weight of false negatives, 0.7."""

    @model_validator(mode="after")
    def _has_no_foreign_setting(self) -> Loss:
        takes = _TAKES[self.kind]
        for name in ("gamma", "gamma_negative", "margin", "alpha", "beta"):
            if getattr(self, name) is not None and name not in takes:
                raise ValueError(f"the loss {self.kind} has no {name}; it takes {', '.join((*takes, 'weight'))}")
        return self


def _form(value: Any) -> str:
    return "sum" if isinstance(value, list | tuple) else "one"


LossConfig = Annotated[
    Annotated[Loss, Tag("one")] | Annotated[tuple[Loss, ...], Tag("sum"), Field(min_length=1)], Discriminator(_form)
]

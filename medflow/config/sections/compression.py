"""From a trained network to the graph that serves: `prune`, `export`, `quantize`, `choose`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medflow.config.sections.base import Positive, Section
from medflow.config.sections.training import Stage


class PruneConfig(Section):
    enabled: bool | None = None
    """None takes configs/models.yaml: on where every listed model can lose channels. The run's graph is fixed before
    a model is selected, so one that cannot takes pruning out of the run."""
    ratio: float = Field(0.3, gt=0.0, lt=0.95)
    """Share of the channels of every prunable layer that is removed."""
    round_to: int = Field(8, ge=1)
    stage: Stage = Stage(epochs=3, lr=1.0e-4, warmup=0.1, patience=0)
    """Fine-tuning after pruning."""


class ExportConfig(Section):
    opset: int = Field(17, ge=17, le=23)
    tolerance: Positive = 1.0e-3
    """Largest difference of probabilities allowed between torch and ONNX; more is an error."""


class QuantizeConfig(Section):
    enabled: bool = True
    calibration_images: int = Field(128, ge=8)
    """Training rows that calibrate the activations' ranges."""
    reduce_range: Literal["auto", "on", "off"] = "auto"
    """7-bit weights; `auto`: on where the processor lacks VNNI, since 16-bit saturation costs accuracy there."""


class ChooseConfig(Section):
    metric: str = "auroc"
    margin: float = Field(0.01, ge=0)
    """A smaller variant may lose this much of the metric on validation rows."""
    mask_margin: float = Field(0.02, ge=0)
    """The same for Dice, where there is a mask head."""

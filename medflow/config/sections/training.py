"""How a network learns: `train`, a list of stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medflow.config.sections.augment import Augment
from medflow.config.sections.base import Fraction, Positive, Section
from medflow.config.sections.losses import LossConfig


class Stage(Section):
    epochs: int = Field(10, ge=1, le=10_000)
    lr: Positive = 3.0e-4
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Fraction = 0.05
    """Share of the stage's steps in which the learning rate rises linearly from 0."""
    lr_min: float = Field(0.0, ge=0)
    """Where cosine ends."""
    freeze: Literal["none", "backbone"] = "none"
    patience: int = Field(10, ge=0)
    """Epochs without a better validation score before the stage ends; 0 never stops early."""


class TrainConfig(Section):
    seed: int = 0
    stages: tuple[Stage, ...] = (Stage(),)
    batch_size: int | None = Field(None, ge=1, le=65536)
    """Images a step; None takes configs/models.yaml."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients are added before each optimiser step."""
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """`auto`: bf16 where the hardware has it, fp16 on older GPUs, 32 bits on a CPU."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    class_weights: bool = True
    """Weigh classes by inverse frequency of the training rows (labels: positives against negatives)."""
    label_smoothing: Fraction = 0.0
    losses: dict[str, LossConfig] = Field(default_factory=dict)
    """By head name or kind of head: `{kind: focal, gamma: 2}`, or a list whose terms are added by `weight`.
    Not named: cross entropy for labels, dice + cross entropy for a mask."""
    loss_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each head's loss, by head name; 1 where not named."""
    monitor: str = "auto"
    """`auto` (macro AUROC of the label head, else Dice), or a metric name; larger is better."""
    augment: Augment = Augment()
    workers: int = Field(0, ge=0, le=64)
    """Threads that prepare batches ahead."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """At least this long between two checkpoints; 0 writes one after every step."""

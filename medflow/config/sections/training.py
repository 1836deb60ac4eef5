"""How a network learns: `train`, a list of stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medflow.config.sections.augment import Augment
from medflow.config.sections.base import Fraction, Positive, Section
from medflow.config.sections.losses import LossConfig


class Stage(Section):
    epochs: int = Field(10, ge=1, le=10_000)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """`adamw` decays weights apart from the gradient, `adam` and `sgd` by adding to it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of `sgd`."""
    nesterov: bool = False
    """`sgd` looks ahead by its momentum."""
    lr: Positive = 3.0e-4
    lr_backbone: Positive | None = None
    """Of the backbone; None is `lr`."""
    lr_norm: Positive | None = None
    """Of normalization layers wherever they stand; None is that of the part they stand in."""
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """`plateau` lowers the rate when the monitored score gets no better."""
    warmup: Fraction = 0.05
    """Share of the stage's steps in which the learning rate rises linearly from 0."""
    lr_min: float = Field(0.0, ge=0)
    """Where cosine ends, and below which plateau does not go."""
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    """What plateau multiplies the rate by."""
    plateau_patience: int = Field(3, ge=0)
    """Epochs without a better score that plateau bears; the next lowers the rate."""
    freeze: Literal["none", "backbone"] = "none"
    unfreeze_blocks: int = Field(0, ge=0)
    """With `freeze: backbone`, this many of its last blocks learn all the same."""
    patience: int = Field(10, ge=0)
    """Epochs without a better validation score, by `train.stop_on`, before the stage ends; 0 never stops early."""

    @model_validator(mode="after")
    def _means_something(self) -> Stage:
        if self.unfreeze_blocks and self.freeze == "none":
            raise ValueError("unfreeze_blocks needs freeze: backbone; with none frozen there is nothing to unfreeze")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd and a momentum above 0")
        return self


class Mixing(Section):
    """Pairs of training images made one; the loss is that of both, by their shares."""

    mixup: float = Field(0.0, ge=0)
    """alpha of the Beta distribution that the share is drawn from (Zhang et al. 2018); 0 never does."""
    cutmix: float = Field(0.0, ge=0)
    """The same for a box of the other image (Yun et al. 2019); with both set, a batch gets either, by chance."""
    probability: Fraction = 1.0
    """Of a batch to be mixed."""


class Calibrate(Section):
    """At which probability an independent label is called positive, fitted on validation rows."""

    rule: Literal["youden", "sensitivity"] = "youden"
    """`youden` takes the largest sensitivity + specificity - 1. `sensitivity` takes the highest threshold that finds
    the share `at` of the positives, where a miss costs more than a false alarm."""
    at: float | None = Field(None, gt=0, lt=1)
    """Sensitivity to reach on validation rows. A label with less than 10 positives there, or 1 / (1 - at) if that is
    more, keeps the Youden threshold, and its rule says so. None with `youden`."""

    @model_validator(mode="after")
    def _means_something(self) -> Calibrate:
        if (self.rule == "sensitivity") != (self.at is not None):
            raise ValueError("rule: sensitivity needs the sensitivity to reach, such as at: 0.9; youden takes none")
        return self


class TrainConfig(Section):
    seed: int = 0
    stages: tuple[Stage, ...] = (Stage(),)
    batch_size: int | None = Field(None, ge=1, le=65536)
    """Images a step, over all devices; None takes configs/models.yaml."""
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
    """Of cross entropy over exclusive classes."""
    losses: dict[str, LossConfig] = Field(default_factory=dict)
    """By head name or kind of head: `{kind: focal, gamma: 2}`, or a list whose terms are added by `weight`.
    Not named: cross entropy for labels, dice + cross entropy for a mask."""
    loss_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each head's loss, by head name; 1 where not named."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """`balanced` draws as many rows, with replacement, rare classes as often as common ones."""
    mixing: Mixing = Mixing()
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Validate and keep a moving average of the weights that decays by this each step; 0 keeps the weights."""
    gradient_checkpointing: bool = False
    """Compute the backbone's activations twice instead of keeping them: less memory, about a third more time."""
    monitor: str = "auto"
    """`auto` (macro AUROC of the label head, else Dice), or a metric name; larger is better. It says which weights are
    kept, and when plateau lowers the rate."""
    stop_on: str | None = None
    """What stages are ended early by, named as `monitor`; None is `monitor`."""
    calibrate: Calibrate = Calibrate()
    """The operating point of independent labels. It goes into the model's card, and holds for what is pruned,
    exported and quantized from it."""
    augment: Augment = Augment()
    workers: int | None = Field(None, ge=0, le=64)
    """Threads that prepare batches ahead, beside the network, in each process; 0 prepares each when it is asked for.
    None: on a GPU a thread for each core that is free, at most 8; on a CPU none, since the network takes every core.
    Any number gives the same weights, so it counts neither in a cache key nor in what a checkpoint belongs to."""
    feature_cache_mb: int = Field(1024, ge=0)
    """Memory for the features of a frozen backbone, computed once where nothing is augmented; 0 computes them anew."""
    devices: int = Field(1, ge=1, le=64)
    """GPUs, or processes on a CPU, that share each batch; `medflow run --devices` sets it. A training that was cut off
    is taken up with the same number; with another it begins anew, since sums in another order are other numbers."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """At least this long between two checkpoints; 0 writes one after every step."""

    def determining(self) -> TrainConfig:
        """The settings that decide what is learnt: all but `workers`."""
        return self.model_copy(update={"workers": None})

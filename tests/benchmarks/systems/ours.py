"""medflow's side: the shipped YAML at reduced size, trained for as many epochs as the time allows.

Epochs are planned by processor time, which on a core of one's own is wall time and which no other work stretches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from material import Material

from medflow.config.sections import Stage, TrainConfig
from medflow.config.sections.models import ModelConfig
from medflow.evaluate import predict
from medflow.records import Predictions
from medflow.tracking import LocalFiles, Silent
from medflow.train import train


class Clock(Silent):
    """Notes the processor time at the end of each epoch."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.ends.append(time.process_time())


def learn(
    material: Material, model: ModelConfig, config: TrainConfig, seconds: float, seed: int, work: Path
) -> tuple[Predictions, float, float]:
    """Predictions on the test rows, the seconds that training took, and those of them spent computing."""
    config = config.model_copy(update={"seed": seed, "accelerator": "cpu"})
    stages = tuple(_timed(material, model, config, stage, work) for stage in config.stages)
    share = seconds / sum(epochs * each for epochs, each in stages)
    fitted = tuple(
        stage.model_copy(update={"epochs": max(1, math.floor(epochs * share))})
        for stage, (epochs, _) in zip(config.stages, stages, strict=True)
    )
    clock, start, computed = Clock(), time.monotonic(), time.process_time()
    bundle = _train(material, model, config.model_copy(update={"stages": fitted}), clock, work / "run")
    took, computed = time.monotonic() - start, clock.ends[-1] - computed
    return predict(bundle, material.parts.test, material.pixels), took, computed


def _timed(material: Material, model: ModelConfig, config: TrainConfig, stage: Stage, work: Path) -> tuple[int, float]:
    """A stage's epochs, and the processor seconds that one of them takes."""
    clock = Clock()
    probe = stage.model_copy(update={"epochs": 2, "patience": 0})
    _train(material, model, config.model_copy(update={"stages": (probe,)}), clock, work / "probe")
    return stage.epochs, clock.ends[1] - clock.ends[0]


def _train(material: Material, model: ModelConfig, config: TrainConfig, clock: Clock, work: Path):
    parts = material.parts
    return train(
        parts.train, parts.val, material.pixels, material.normalization, material.heads, model, config,
        work=work, tracker=clock, checkpoints=LocalFiles(work / "checkpoints"),
    )  # fmt: skip

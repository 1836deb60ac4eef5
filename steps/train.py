"""One model, trained on the training rows and watched on the validation rows."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import ModelConfig, TrainConfig
from medflow.records import Bundle, HeadSpec, Manifest, Normalization, Pixels


@step
def train(
    train: Manifest,
    val: Manifest,
    pixels: Pixels,
    normalization: Normalization,
    heads: tuple[HeadSpec, ...],
    model: ModelConfig,
    config: TrainConfig,
) -> Annotated[Bundle, "trained"]:
    from medflow import train as training
    from medflow.platform import context, trackers

    with trackers.MlflowTracker(train.card.name, f"train {model.key}") as tracker:
        return training.train(
            train, val, pixels, normalization, heads, model, config,
            work=context.work_folder(), tracker=tracker, checkpoints=context.checkpoints(),
        )  # fmt: skip

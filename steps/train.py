"""One model, trained on the training rows and watched on the validation rows."""

from __future__ import annotations

from typing import Annotated

from zenml import step
from zenml.types import HTMLString

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
) -> tuple[Annotated[Bundle, "trained"], Annotated[HTMLString, "augmentation_page"]]:
    from medflow import model_files, train_files
    from medflow import train as training
    from medflow.platform import context, learning, store_access, training_tracker
    from medflow.report import samples

    access = store_access.of_store()
    context.refuse_changed(model_files.named((model,), access))
    with training_tracker.of_step(train.card.name, f"train {model.key}") as tracker:
        bundle = training.train(
            train, val, pixels, normalization, heads, model, training_tracker.as_asked(config),
            work=context.work_folder(), tracker=tracker, checkpoints=context.checkpoints(),
            access=access, learn=learning.learner(),
        )  # fmt: skip
        batch = train_files.log_files(bundle, train, pixels, tracker, context.work_folder())
    return bundle, HTMLString(samples.augmentation_page(batch))

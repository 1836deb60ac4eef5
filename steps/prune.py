"""Channels removed, then fine-tuned."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import PruneConfig, TrainConfig
from medflow.records import Bundle, Manifest, Pixels


@step
def prune(
    bundle: Bundle, train: Manifest, val: Manifest, pixels: Pixels, config: PruneConfig, training: TrainConfig
) -> Annotated[Bundle, "pruned"]:
    from medflow import prune as pruning
    from medflow.platform import context, learning, training_tracker

    with training_tracker.of_step(train.card.name, "prune") as tracker:
        return pruning.prune(
            bundle, train, val, pixels, config, training_tracker.as_asked(training),
            work=context.work_folder(), tracker=tracker, checkpoints=context.checkpoints(), learn=learning.learner(),
        )  # fmt: skip

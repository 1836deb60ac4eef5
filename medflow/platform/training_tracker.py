"""What a step that trains has of its run: a tracker, and the settings that are in no cache key.

The tracker is MLflow always, and what the run's `trackers` ask for beside it.

Apart from ``trackers``, so that steps which do not train do not reach torch through TensorBoard's writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

from zenml import get_step_context

from medflow.config.sections import RunConfig, TrainConfig, WandbConfig
from medflow.config.showing import config_yaml
from medflow.platform import trackers
from medflow.platform.trackers import CONFIG
from medflow.trackers import Offer, opened, tensorboard, wandb
from medflow.tracking import Tracker


def of_step(
    dataset: str, name: str, *, tags: Mapping[str, str] = MappingProxyType({})
) -> AbstractContextManager[Tracker]:
    """The tracker of one training of the running step: MLflow, and what this run's `trackers` ask for beside it.

    ``tags`` are for MLflow.
    """
    return opened([Offer(trackers.MLFLOW, lambda: trackers.child(dataset, name, tags)), *_beside(dataset, name)])


def as_asked(config: TrainConfig) -> TrainConfig:
    """The settings of the running step with this run's `workers`, which its parameters do not have."""
    extra: Mapping[str, Any] = get_step_context().pipeline_run.config.extra
    return config.model_copy(update={"workers": extra.get("workers")})


def settings(config: RunConfig) -> dict[str, Any]:
    """What a pipeline carries for this module and `record`, as ZenML's `extra`: it reaches every step and no cache key.

    A parameter or an environment variable would be in the key, and adding a tracker would train everything anew.
    """
    return {
        "trackers": list(config.trackers),
        "wandb": config.wandb.model_dump(mode="json"),
        "workers": config.train.workers,
        CONFIG: config_yaml(config),
    }


def _beside(dataset: str, name: str) -> list[Offer]:
    run = get_step_context().pipeline_run
    wanted: Mapping[str, Any] = run.config.extra
    offers = {
        "tensorboard": tensorboard.offer(dataset, run.name, name.replace(" ", "_")),
        "wandb": wandb.offer(WandbConfig.model_validate(wanted.get("wandb", {})), dataset, run.name, name),
    }
    return [offers[tracker] for tracker in wanted.get("trackers", ())]

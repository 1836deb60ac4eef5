"""Where a training is logged beside MLflow: `trackers` and `wandb`. Nothing here changes what is learnt."""

from __future__ import annotations

from typing import Literal

from medflow.config.sections.base import Section

TrackerName = Literal["tensorboard", "wandb"]


class WandbConfig(Section):
    """How Weights & Biases files a run. The API key comes from WANDB_API_KEY alone, never from a YAML."""

    project: str | None = None
    """None takes the dataset's name."""
    entity: str | None = None
    """User or team; None takes the account's own."""
    tags: tuple[str, ...] = ()
    notes: str = ""

"""Before a run: a small text encoder in place of a pretrained one that cannot be had. No torch.

It is settled once, before the run's graph is made, and written into the settings. So what is used is in the cache keys,
in the checkpoints' names and in the card like any other setting, and the same key never means two encoders.
"""

from __future__ import annotations

from pathlib import Path

from medflow import hub, s3
from medflow.config.sections import ImageTextModel, ModelConfig, RunConfig
from medflow.config.sections.text import SMALL
from medflow.errors import WeightsUnavailable
from medflow.progress import say

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def with_reachable_encoders(config: RunConfig) -> RunConfig:
    """The settings with every text encoder within reach. Says aloud what stands in for what.

    Raises WeightsUnavailable where ``text.offline`` is ``error``.
    """
    return config.model_copy(update={"models": tuple(_within_reach(model) for model in config.models)})


def is_here(encoder: str) -> bool:
    """Whether a text encoder is a folder, here or in a bucket, or was fetched from the hub before."""
    if s3.Place.is_meant(encoder) or encoder_folder(encoder) is not None:
        return True
    return hub.cached(encoder, CONFIG) is not None and hub.cached(encoder, WEIGHTS) is not None


def encoder_folder(encoder: str) -> Path | None:
    """The folder that ``text.encoder`` names, or None where it names one of the hub's."""
    folder = Path(encoder).expanduser()
    return folder if folder.is_dir() else None


def unreachable(encoder: str, why: str) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"the text encoder {encoder!r} cannot be had: {why}",
        hint="set model.text.encoder=small for a small one with random weights, or name the folder of one",
    )


def _within_reach(model: ModelConfig) -> ModelConfig:
    if not isinstance(model, ImageTextModel) or model.text.encoder == SMALL:
        return model
    wanted = model.text.encoder
    if is_here(wanted) or hub.answers():
        return model
    if model.text.offline == "error":
        raise unreachable(wanted, "it is no folder, is not on this machine, and the hub does not answer")
    say(
        f"model {model.key}: the text encoder {wanted} is not on this machine and the hub does not answer; "
        "a small encoder with random weights takes its place (model.text.offline=error stops instead)"
    )
    return model.model_copy(update={"text": model.text.model_copy(update={"encoder": SMALL, "instead_of": wanted})})

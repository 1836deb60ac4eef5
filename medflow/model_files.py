"""The files of this machine that a model starts from: settings name them, and their bytes decide what is trained."""

from __future__ import annotations

from pathlib import Path

from medflow.config.sections import ImageTextModel, ModelConfig
from medflow.substitute import encoder_folder


def files_of(model: ModelConfig) -> tuple[Path, ...]:
    """The weights file and the text encoder's folder that a model's settings name; none for what the hub publishes.

    A file that is not there is left out: training says so.
    """
    named = [] if model.pretrained in ("imagenet", "none") else [Path(model.pretrained).expanduser()]
    folder = encoder_folder(model.text.encoder) if isinstance(model, ImageTextModel) else None
    inside = sorted(folder.iterdir()) if folder is not None else []
    return tuple(path for path in (*named, *inside) if path.is_file())

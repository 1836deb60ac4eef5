"""The train step: from rows and pixels to a bundle. The loop itself is ``medflow.fit``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from medflow import __version__, models
from medflow.bundle import finish
from medflow.checkpoint import Checkpoints
from medflow.config.sections import ImageTextModel, ModelConfig, TrainConfig
from medflow.fit import Data, fit
from medflow.pretrained import load_pretrained
from medflow.records import (
    Bundle,
    HeadSpec,
    Manifest,
    ModelCard,
    Normalization,
    OperatingPoint,
    Pixels,
    content,
    digest_of,
)
from medflow.report_share import with_report_share
from medflow.text_encoder import fill, prepare
from medflow.tracking import Files, Tracker


def train(
    rows: Manifest,
    val: Manifest,
    pixels: Pixels,
    normalization: Normalization,
    heads: tuple[HeadSpec, ...],
    model: ModelConfig,
    config: TrainConfig,
    *,
    work: Path,
    tracker: Tracker,
    checkpoints: Files,
) -> Bundle:
    """Train one model on ``rows`` and return its bundle, in ``work/<model id>``, with the best weights on ``val``.

    Checkpoints of this very training (same rows, ``config.determining()``, code version) in ``checkpoints`` are taken
    up, and removed once the bundle is there. Raises ModelError, WeightsUnavailable, ConfigError or TrainingError.
    """
    preprocess = models.preprocess_for(model, normalization, pixels)
    reader = prepare(model, rows) if isinstance(model, ImageTextModel) else None
    network = models.build(model, heads, preprocess, text=reader.reading if reader else None, seed=config.seed)
    weights_from = load_pretrained(network, model)
    if reader is not None:
        fill(network, reader)
        weights_from = f"{weights_from}; {reader.weights_from()}"
    data = Data(rows, val, pixels, heads, preprocess, reader.tokenizer if reader else None)
    identity = digest_of([__version__, data.digest(), content(model), content(config.determining()), weights_from])
    store = Checkpoints(checkpoints, identity)
    tracker.params(_params(model, config, data))
    log = fit(network, data, config, tracker=tracker, checkpoints=store)
    card = ModelCard(
        name=f"{rows.card.name}/{model.key}",
        variant="torch",
        dataset=rows.card,
        heads=heads,
        preprocess=preprocess,
        model=model.model_dump(mode="json"),
        weights_from=weights_from,
        text=reader.reading if reader else None,
        training=log,
        operating_point=OperatingPoint(rule=config.calibrate.rule, at=config.calibrate.at),
        training_config=config.determining().model_dump(mode="json"),
        data_digest=rows.digest(),
        weights_digest="",
        bytes=0,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        notes=(*(reader.notes() if reader else ()), *_warnings(rows), *log.notes),
        source_version=rows.source.version if rows.source else "",
        code_version=__version__,
    )
    if reader is not None:
        reader.tokenizer.write(work / Bundle.TOKENIZER)
    bundle = finish(work / model.key, card, save_weights(network, work), val, pixels)
    if reader is not None:
        bundle = with_report_share(bundle, val, pixels)
    store.clear()
    return bundle


def _warnings(rows: Manifest) -> tuple[str, ...]:
    """What the listing found odd, for the card."""
    return tuple(f"{item.count} {item.message}" for item in rows.findings if item.severity == "warning")


def save_weights(network: nn.Module, folder: Path) -> Path:
    """Write a network's state to a safetensors file in ``folder``, ready to be moved into a bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{Bundle.TORCH}.part"
    save_file(models.tensors_of(network), path)
    return path


def _params(model: ModelConfig, config: TrainConfig, data: Data) -> dict[str, str | int | float | bool]:
    """What a tracker shows of a training: settings by dotted name, beside the sizes of the data."""
    flat: dict[str, str | int | float | bool] = {"train_images": len(data.train), "val_images": len(data.val)}
    pending: list[tuple[str, Any]] = [("model", model.model_dump()), ("train", config.model_dump())]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, tuple | list) and value and isinstance(value[0], Mapping):
            pending += [(f"{name}.{index}", item) for index, item in enumerate(value)]
        else:
            flat[name] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat

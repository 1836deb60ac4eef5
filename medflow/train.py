"""The train step: from rows and pixels to a bundle. The loop itself is ``medflow.fit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from medflow import __version__, model_files, models
from medflow.bundle import finish
from medflow.checkpoint import Checkpoints
from medflow.config.sections import ImageTextModel, ModelConfig, TrainConfig
from medflow.fit import Data, Learn, fit
from medflow.model_files import ModelFiles
from medflow.pretrained import load_pretrained
from medflow.records import (
    Bundle,
    HeadSpec,
    Manifest,
    ModelCard,
    Normalization,
    OperatingPoint,
    Pixels,
    Preprocess,
    TrainingLog,
    content,
    digest_of,
)
from medflow.report_share import with_report_share
from medflow.s3 import AMBIENT, Access
from medflow.text import Tokenizer
from medflow.text_encoder import Prepared, fill, prepare
from medflow.tracking import Files, Tracker

#: Below a training's folder: the files of a bucket that it starts from. No model's id begins with a dot.
BROUGHT = ".brought"


@dataclass(frozen=True)
class _Begun:
    """A network before its training, and where it comes from."""

    network: models.Network
    preprocess: Preprocess
    weights_from: str
    starts: tuple[str, ...]
    """Names of files and folders that it starts from."""
    reader: Prepared | None
    """None where the model reads no reports."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.reader.tokenizer if self.reader else None


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
    access: Access = AMBIENT,
    learn: Learn = fit,
) -> Bundle:
    """Train one model on ``rows`` and return its bundle, in ``work/<model id>``, with the best weights on ``val``.

    Checkpoints of this very training (same rows, ``config.determining()``, code version) in ``checkpoints`` are taken
    up, and removed once the bundle is there. ``access`` is for files in a bucket that the model starts from. Raises
    ModelError, WeightsUnavailable, ConfigError, TrainingError, or SourceError where a bucket refuses.
    """
    preprocess = models.preprocess_for(model, normalization, pixels)
    begun = _begin(rows, preprocess, heads, model, config.seed, model_files.bring(model, work / BROUGHT, access))
    data = Data(rows, val, pixels, heads, preprocess, begun.tokenizer)
    told = [__version__, data.digest(), content(model), content(config.determining()), begun.weights_from]
    store = Checkpoints(checkpoints, digest_of(told))
    tracker.params(_params(model, config, data))
    log = learn(begun.network, data, config, tracker=tracker, checkpoints=store)
    bundle = _bundle(begun, _card(begun, data, model, config, log), data, work)
    store.clear()
    return bundle


def _begin(
    rows: Manifest,
    preprocess: Preprocess,
    heads: tuple[HeadSpec, ...],
    model: ModelConfig,
    seed: int,
    files: ModelFiles,
) -> _Begun:
    """The network of a config with the weights that it starts from."""
    reader = prepare(model, rows, files.encoder) if isinstance(model, ImageTextModel) else None
    network = models.build(model, heads, preprocess, text=reader.reading if reader else None, seed=seed)
    weights_from = load_pretrained(network, model, files.weights)
    if reader is not None:
        fill(network, reader)
        weights_from = f"{weights_from}; {reader.weights_from()}"
    return _Begun(network, preprocess, weights_from, model_files.names(model), reader)


def _card(begun: _Begun, data: Data, model: ModelConfig, config: TrainConfig, log: TrainingLog) -> ModelCard:
    """All but what ``finish`` measures."""
    rows, reader = data.train, begun.reader
    return ModelCard(
        name=f"{rows.card.name}/{model.key}",
        variant="torch",
        dataset=rows.card,
        heads=data.heads,
        preprocess=begun.preprocess,
        model=model.model_dump(mode="json"),
        weights_from=begun.weights_from,
        starts=begun.starts,
        text=reader.reading if reader else None,
        training=log,
        operating_point=OperatingPoint(rule=config.calibrate.rule, at=config.calibrate.at),
        training_config=config.determining().model_dump(mode="json"),
        data_digest=rows.digest(),
        weights_digest="",
        bytes=0,
        parameters=sum(parameter.numel() for parameter in begun.network.parameters()),
        notes=(*_beginnings(begun), *(reader.notes() if reader else ()), *_warnings(rows), *log.notes),
        source_version=rows.source.version if rows.source else "",
        code_version=__version__,
    )


def _bundle(begun: _Begun, card: ModelCard, data: Data, work: Path) -> Bundle:
    """What was learnt, in ``work/<model id>``."""
    if begun.tokenizer is not None:
        begun.tokenizer.write(work / Bundle.TOKENIZER)
    root = work / card.name.rpartition("/")[2]
    bundle = finish(root, card, save_weights(begun.network, work), data.val, data.pixels)
    return bundle if begun.tokenizer is None else with_report_share(bundle, data.val, data.pixels)


def _beginnings(begun: _Begun) -> tuple[str, ...]:
    """That weights which came as files have a past, for the card."""
    if not begun.starts:
        return ()
    files = " and ".join(begun.starts)
    return (f"started from {files}: which images or reports that was trained on before is not stated anywhere",)


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

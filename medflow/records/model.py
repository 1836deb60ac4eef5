"""A model: how its input is made, how it was trained, its card, and the bundle that holds it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from medflow.errors import ArtifactError
from medflow.records.base import BESIDE, Record, Whole
from medflow.records.dataset import DatasetCard, HeadSpec
from medflow.records.pixels import PixelSpec


class ChannelStats(Record):
    """Mean and standard deviation of training pixels, each channel, in 0 to 1."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalization(Record):
    """What ``normalize`` measured, one entry for each stored size."""

    sizes: tuple[ChannelStats, ...]
    images: int


class Preprocess(Record):
    """From raw bytes to what a model's first layer sees. Mean and std are in 0 to 1, per channel."""

    pixels: PixelSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Threshold(Record):
    head: str
    label: str
    value: float
    """A label is called positive at or above this probability (after temperature)."""
    rule: str
    """How it was fitted, such as ``argmax``, ``youden``, ``sensitivity 0.9`` or ``dice``."""


class OperatingPoint(Record):
    """By which rule the thresholds of independent labels are fitted on validation rows."""

    rule: Literal["youden", "sensitivity"] = "youden"
    """``youden``: largest sensitivity + specificity - 1. ``sensitivity``: the highest threshold that reaches ``at``."""
    at: float | None = None
    """Sensitivity to reach, between 0 and 1; None with ``youden``."""


class Temperature(Record):
    """Divides the logits of a head before its activation (Guo et al. 2017, arXiv 1706.04599)."""

    head: str
    value: float = Field(gt=0)


class EpochLog(Record):
    """One epoch. Losses are means over images."""

    stage: int
    epoch: int
    train_loss: float
    val_loss: float
    val_score: float
    """The stage's monitored metric on validation rows; larger is better."""
    lr: float
    seconds: Annotated[float, BESIDE] = 0.0
    images_per_second: Annotated[float, BESIDE] = 0.0
    losses: Mapping[str, float] = Field(default_factory=dict)
    """Validation loss by head."""
    scores: Mapping[str, float] = Field(default_factory=dict)
    """Of validation rows, ``<head>/<metric>``, over the whole head (macro, or micro where it has no macro)."""
    train_losses: Mapping[str, float] = Field(default_factory=dict)
    """Training loss by head, over its known terms."""
    train_accuracy: float | None = None
    """Of the first label head while it learnt, 0 to 1; None where images are mixed or there is no label head."""


class TrainingLog(Record):
    seed: int
    best_epoch: int
    best_score: float
    monitor: str
    """The metric by which the best weights were kept."""
    stop_on: str | None = None
    """The metric by which stages ended early; None is ``monitor``."""
    epochs: tuple[EpochLog, ...]
    class_weights: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)
    train_images: int
    val_images: int
    device: Annotated[str, BESIDE] = "cpu"
    precision: str = "32-true"
    devices: int = 1
    threads: Annotated[int, BESIDE] = 0
    """Of each process, on a CPU: another number adds up in another order, and gives other weights in the last digits.
    0 on a GPU."""
    halvings: int = 0
    """How often memory did not hold a batch, which was then halved; the steps are those of the whole batch."""
    notes: tuple[str, ...] = ()
    """Facts of this training that a reader of the card must not miss."""


class Parity(Record):
    """How far a variant's outputs are from the bundle it was made from, on validation rows."""

    against: str
    max_abs_difference: float
    """Of probabilities."""
    decisions_agree: float
    """Share of images with the same decision, 0 to 1."""
    images: int


class PrunedLayer(Record):
    """One layer of a pruned network, as rebuilding needs it."""

    name: str
    kept_in: int
    kept_out: int


class TextReading(Record):
    """How a model reads reports: which encoder, from where, over which vocabulary."""

    encoder: Mapping[str, Any]
    """The encoder's configuration, as transformers' ``AutoConfig.for_model`` takes it."""
    origin: str
    """``random``; or the hub's name, or the folder's, with the sha256 of the weights."""
    pretrained: bool
    instead_of: str = ""
    """The encoder that was asked for and could not be reached, for which a small random one stands in."""
    max_tokens: int
    """Tokens of a report that are read, its start and end tokens included."""
    vocabulary: int
    tokenizer_sha256: str
    """sha256 of the bundle's ``tokenizer.json``."""
    reports: int
    """Training rows with a report."""


class Structure(Record):
    """What a network is built from, its weights aside; fields as in ``ModelCard``."""

    model: Mapping[str, Any]
    heads: tuple[HeadSpec, ...]
    preprocess: Preprocess
    text: TextReading | None = None
    pruned: tuple[PrunedLayer, ...] = ()


class ModelCard(Record):
    """All that is needed to rebuild, run and judge a bundle."""

    name: str
    """``<dataset>/<model id>``."""
    variant: Literal["torch", "pruned", "onnx", "pruned_onnx", "int8", "pruned_int8"]
    dataset: DatasetCard
    heads: tuple[HeadSpec, ...]
    """The heads this model was trained for, a subset of the dataset's."""
    preprocess: Preprocess
    model: Mapping[str, Any]
    """The model's section of the run config, as ``config.ModelConfig`` reads it."""
    weights_from: str
    """``imagenet (timm NAME)``, ``file NAME, sha256:…`` or ``none``; then, where it reads reports, ``; text: …``."""
    starts: tuple[str, ...] = ()
    """Names of the files and folders that it started from, of which nobody states what they had been trained on."""
    text: TextReading | None = None
    """None where the model reads no reports."""
    training: TrainingLog | None = None
    training_config: Mapping[str, Any] = Field(default_factory=dict)
    operating_point: OperatingPoint = OperatingPoint()
    """How ``thresholds`` of independent labels are fitted, for this bundle and all that is made from it."""
    thresholds: tuple[Threshold, ...] = ()
    temperatures: tuple[Temperature, ...] = ()
    pruned: tuple[PrunedLayer, ...] = ()
    data_digest: str
    """Digest of the training rows' manifest."""
    weights_digest: str
    """sha256 of the weights file."""
    parity: Parity | None = None
    notes: tuple[str, ...] = ()
    """Facts a reader must not miss, such as layers left in float by quantization."""
    bytes: int
    """Size of the weights or graph file."""
    parameters: int
    macs: int | None = None
    latency_ms: Annotated[float | None, BESIDE] = None
    """Median of one image on one thread of the machine that made the bundle."""
    source_version: Annotated[str, BESIDE] = ""
    code_version: Annotated[str, BESIDE] = ""


@dataclass(frozen=True)
class Bundle(Whole):
    """A folder: ``card.json``, ``model.safetensors`` or ``model.onnx``, and ``golden.safetensors``.

    The golden set holds a few validation images (``image``, uint8 (n, height, width, channels)) and the
    bundle's own outputs for them (``<head>``, float32 logits): a server that starts checks itself on them.
    Where the model reads reports, there is ``tokenizer.json`` too, and the golden set holds the images' reports
    (``reports``, uint8: the bytes of a JSON list of strings and nulls).
    """

    root: Path
    card: ModelCard

    CARD = "card.json"
    TORCH = "model.safetensors"
    ONNX = "model.onnx"
    GOLDEN = "golden.safetensors"
    TOKENIZER = "tokenizer.json"

    @property
    def is_onnx(self) -> bool:
        return self.card.variant not in ("torch", "pruned")

    @property
    def weights(self) -> Path:
        return self.root / (self.ONNX if self.is_onnx else self.TORCH)

    @property
    def golden(self) -> Path:
        return self.root / self.GOLDEN

    @property
    def tokenizer(self) -> Path:
        return self.root / self.TOKENIZER

    def digest(self) -> str:
        return self.card.digest()

    @classmethod
    def open(cls, root: Path) -> Self:
        """Read the card of a bundle's folder. Raises ArtifactError where it is not one."""
        path = Path(root) / cls.CARD
        if not path.exists():
            raise ArtifactError(
                f"{root} is no model bundle: it has no {cls.CARD}",
                hint="name a folder that `medflow run` or `medflow predict --help` calls a bundle",
            )
        return cls(root=Path(root), card=ModelCard.model_validate_json(path.read_text()))

    def files(self) -> tuple[Path, ...]:
        """The files that make up the bundle; a folder in a store may hold others beside them."""
        return (self.root / self.CARD, self.weights, self.golden, *((self.tokenizer,) if self.card.text else ()))

    def share_with(self, folder: Path) -> None:
        """Copy what every variant made from this bundle has as it is: the tokenizer, where there is one."""
        if self.card.text is not None:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.tokenizer, folder / self.TOKENIZER)

    def copy_to(self, folder: Path) -> Self:
        """The same bundle in another folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.files():
            shutil.copyfile(path, folder / path.name)
        return replace(self, root=folder)

    def write_card(self) -> Self:
        """Write ``card.json`` (temporary name, then rename) and return this bundle."""
        part = self.root / f".{self.CARD}.part"
        part.write_text(self.card.model_dump_json(indent=1))
        part.replace(self.root / self.CARD)
        return self

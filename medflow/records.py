"""The records that pass between steps: frozen, typed, hashed by content.

Small ones are pydantic models (``Record``). The big ones, ``Manifest``, ``Pixels``, ``Bundle``,
``Predictions`` and ``Package``, hold a table or a folder of files.

Every record has ``digest()``, a sha256 over what later results depend on. A field marked
``Beside`` (code version, source version number, times, latencies) travels along but does not count.
This module imports numpy and pydantic only; pyarrow is imported where a table is touched, because
serving reads ``ModelCard`` from here and has no pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import core_schema

from medflow.errors import ArtifactError, DataError, SplitError

if TYPE_CHECKING:
    import pandas
    import pyarrow


class _Beside:
    """Marks a field that travels with a record and does not count in its digest."""


BESIDE = _Beside()


class Record(BaseModel):
    """A frozen value with a content digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def digest(self) -> str:
        """sha256 (64 hex) of the fields that count, as sorted JSON."""
        return digest_of(content(self))


class Whole:
    """A big record: pydantic (which checks step signatures) looks at its class, and not inside.

    Its fields have types, such as Arrow's, that this module does not import.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.is_instance_schema(cls)


def content(value: Any) -> Any:
    """``value`` as plain JSON types, without the fields marked ``BESIDE``, at any depth."""
    if isinstance(value, Record):
        fields = type(value).model_fields
        return {name: content(getattr(value, name)) for name in fields if BESIDE not in fields[name].metadata}
    if isinstance(value, BaseModel):
        return content(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [content(item) for item in value]
    return value


def digest_of(value: Any) -> str:
    """sha256 (64 hex) of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (64 hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- what a dataset is ---------------------------------------------------------------------------


class HeadSpec(Record):
    """One thing that a dataset asks of a model."""

    kind: Literal["exclusive", "independent", "mask"]
    name: str
    """Lower-case identifier, such as ``diagnosis`` or ``lung``; names the output and the label columns."""
    labels: tuple[str, ...]
    """Class names in the order of the output channels; a mask head has exactly one."""

    def columns(self) -> tuple[str, ...]:
        """The manifest's label columns of this head, ``<head>.<label>``; none for a mask head."""
        return () if self.kind == "mask" else tuple(f"{self.name}.{label}" for label in self.labels)


class DatasetCard(Record):
    """What a dataset declares of itself. The same wherever its files lie."""

    name: str
    title: str
    heads: tuple[HeadSpec, ...]
    channels: Literal[1, 3]
    """Channels kept in the pixel store: 1 for radiographs, 3 for photographs."""
    grouped_by: str
    """What makes two images one group: ``patient``, ``lesion``, or ``near-duplicates`` where nothing is known."""
    kaggle: str | None = None
    """``owner/dataset`` on Kaggle."""
    modality: str = ""
    licence: str = ""
    citation: str = ""
    limits: str = ""
    """What a reader of results must know about this dataset, in one or two sentences."""

    def label_head(self) -> HeadSpec | None:
        return next((head for head in self.heads if head.kind != "mask"), None)

    def mask_head(self) -> HeadSpec | None:
        return next((head for head in self.heads if head.kind == "mask"), None)


class Generated(Record):
    """What to generate where a source is no archive but an offline twin."""

    images: int
    seed: int = 0
    planted_faults: bool = False


class Source(Record):
    """Where images came from this time, as ``resolve`` saw the world."""

    kind: Literal["kaggle", "folder", "zip", "generated"]
    fingerprint: str
    """Changes when the source does: Kaggle's version, or a digest over names, sizes and times."""
    uri: Annotated[str, BESIDE] = ""
    """Kaggle handle, or the folder or archive as given."""
    version: Annotated[str, BESIDE] = ""
    """Kaggle's version number as text; empty where the source has none. Never invented."""
    generated: Generated | None = None


class Placement(Record):
    """Group → role that ``split`` starts from. Empty for a source not yet split."""

    roles: Mapping[str, Literal["train", "val", "test"]] = Field(default_factory=dict)


class Challenge(Record):
    """The stage that the candidate challenges, and what holds it now."""

    stage: str
    model_version: str | None = None
    """Version of the dataset's model that holds the stage, or None."""
    package_digest: str | None = None


# -- tables --------------------------------------------------------------------------------------

#: Columns that every manifest has, beside one int8 column ``<head>.<label>`` per label (1, 0, null).
#: Arrow types by name, so that importing this module needs no pyarrow.
MANIFEST_COLUMNS: Mapping[str, str] = {
    "image_id": "string",  # unique
    "path": "string",  # relative to the data root, POSIX
    "mask_path": "string",  # likewise, null where the image has none
    "sha256": "string",  # of the file's bytes, null where unreadable
    "group": "string",  # patient or lesion; the image's own id where nothing is known
    "text": "string",
    "official_split": "string",  # train, val, test, or null
    "source": "string",
    "age": "float32",  # years
    "sex": "string",  # F, M or null
    "view": "string",
    "site": "string",
    "boxes": "string",  # JSON list of {label, x, y, width, height} in pixels of the original, or null
    "width": "int32",  # of the original, pixels
    "height": "int32",
    "mode": "string",  # PIL mode of the original: L, RGB, P, RGBA, I;16 …
    "bytes": "int64",
    "mean": "float32",  # of the decoded gray image, 0 to 255
    "std": "float32",
    "blur": "float32",  # variance of the Laplacian
    "phash": "string",  # 16 hex digits, 64-bit perceptual hash
    "mask_width": "int32",
    "mask_height": "int32",
    "mask_fraction": "float32",  # share of mask pixels that are set, 0 to 1
    "error": "string",  # why the image has no pixels, or null
    "mask_error": "string",  # why its mask has none, or null
    "pixel_row": "int64",  # row in every store of Pixels, null where there is an error
}


@dataclass(frozen=True)
class Manifest(Whole):
    """A dataset (or one part of its split) as a table: one row an image."""

    card: DatasetCard
    table: pyarrow.Table
    source: Source | None = None
    findings: tuple[Finding, ...] = ()
    """What the listing found odd, such as stray files: told by `validate`, not part of the digest."""

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column as numpy; strings and nullable columns as objects with None."""
        array = self.table.column(name)
        if array.null_count or not _is_number(array.type):
            return np.array(array.to_pylist(), dtype=object)
        return array.to_numpy()

    def to_pandas(self) -> pandas.DataFrame:
        return self.table.to_pandas()

    def take(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """The given rows, in the given order."""
        import pyarrow

        indices = pyarrow.array(np.asarray(rows, dtype=np.int64))
        return replace(self, table=self.table.take(indices))

    def pixel_rows(self) -> np.ndarray:
        """Rows of the pixel store, int64 (N,). Raises DataError where an image has no pixels."""
        column = self.table.column("pixel_row")
        if column.null_count:
            raise DataError(
                f"{column.null_count} of {len(self)} images have no pixels",
                hint="run `validate` first: it quarantines images that could not be decoded",
            )
        return column.to_numpy().astype(np.int64)

    def targets(self, head: HeadSpec) -> np.ndarray:
        """Labels of a head, float32 (N, labels): 1, 0, or NaN for unknown."""
        columns = [self.table.column(name).to_numpy(zero_copy_only=False) for name in head.columns()]
        return np.stack([column.astype(np.float32) for column in columns], axis=1)

    def has_mask(self) -> np.ndarray:
        """bool (N,): the image has a mask that was read."""
        frame = self.table.select(["mask_path", "mask_error"]).to_pylist()
        return np.array([row["mask_path"] is not None and row["mask_error"] is None for row in frame], dtype=bool)

    def digest(self) -> str:
        """sha256 over card and rows; independent of Arrow's chunking and of where the data lie."""
        rows = hashlib.sha256()
        for name in sorted(self.table.column_names):
            rows.update(name.encode())
            rows.update(json.dumps(self.table.column(name).to_pylist(), ensure_ascii=False).encode())
        return digest_of({"card": content(self.card), "rows": rows.hexdigest()})


def _is_number(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind))


@dataclass(frozen=True)
class Split:
    """Three parts of a manifest that share no group. Raises SplitError otherwise."""

    train: Manifest
    val: Manifest
    test: Manifest

    def __post_init__(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for column in ("group", "image_id", "sha256"):
            self._refuse_overlap(column, {role: set(part.column(column)) - {None} for role, part in parts.items()})

    @staticmethod
    def _refuse_overlap(column: str, seen: Mapping[str, set[str]]) -> None:
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = seen[first] & seen[second]
            if shared:
                raise SplitError(
                    f"{len(shared)} {column} values are in both {first} and {second}, for example {min(shared)!r}",
                    hint="a group must lie in one part only; re-split instead of using this placement",
                )


@dataclass(frozen=True)
class Predictions(Whole):
    """What a bundle said about some rows, beside what was true.

    ``probabilities[head]`` is float32 (N, labels) after temperature, 0 to 1; for a mask head it is
    absent, since per-image Dice and IoU are kept instead in ``mask_scores[head]``, float32 (N, 2)
    with NaN where the image has no mask. ``targets[head]`` is float32 (N, labels), NaN for unknown.
    """

    bundle_digest: str
    rows_digest: str
    heads: tuple[HeadSpec, ...]
    image_id: np.ndarray
    group: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    mask_scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()
    """The bundle's own, so that decisions can be compared without the bundle."""

    def __len__(self) -> int:
        return len(self.image_id)

    def digest(self) -> str:
        state = hashlib.sha256()
        for name in (self.image_id, self.group):
            state.update(json.dumps([str(value) for value in name]).encode())
        for arrays in (self.probabilities, self.targets, self.mask_scores):
            for head in sorted(arrays):
                state.update(head.encode())
                state.update(np.ascontiguousarray(arrays[head], dtype=np.float32).tobytes())
        heads = [content(head) for head in self.heads]
        cuts = [content(threshold) for threshold in self.thresholds]
        return digest_of({"heads": heads, "rows": self.rows_digest, "arrays": state.hexdigest(), "thresholds": cuts})


# -- pixels --------------------------------------------------------------------------------------


class PixelSpec(Record):
    """The shape that every image is brought to, once, before it is stored or scored."""

    height: int = Field(gt=0, le=4096)
    width: int = Field(gt=0, le=4096)
    channels: Literal[1, 3]
    fit: Literal["stretch", "pad"] = "stretch"
    """``stretch`` fills the frame; ``pad`` keeps the aspect ratio and pads with zeros, centred."""
    interpolation: Literal["area-linear"] = "area-linear"
    """Whole-number box average first, bilinear for the rest: antialiased, unlike bilinear alone."""


class Shard(Record):
    """One ``.npy`` file of a store."""

    path: str
    rows: int
    sha256: str


class PixelStore(Record):
    """All images at one size: uint8 (rows, height, width, channels); masks uint8 (rows, height, width), 0 or 1."""

    spec: PixelSpec
    images: tuple[Shard, ...]
    masks: tuple[Shard, ...] = ()


class PixelIndex(Record):
    rows: int
    stores: tuple[PixelStore, ...]


@dataclass(frozen=True)
class Pixels(Whole):
    """Packed pixels in a folder, memory-mapped. ``index`` names every shard and its digest."""

    root: Path
    index: PixelIndex

    def digest(self) -> str:
        return self.index.digest()


# -- findings ------------------------------------------------------------------------------------


class Finding(Record):
    """The outcome of one check that did not pass."""

    check: str
    severity: Literal["error", "warning", "info"]
    message: str
    count: int
    examples: tuple[str, ...] = Field(default=(), max_length=5)


class Findings(Record):
    findings: tuple[Finding, ...] = ()
    images: int = 0
    """Images looked at."""
    quarantined: int = 0
    """Images left out of what follows."""

    def of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity == severity)


# -- model ---------------------------------------------------------------------------------------


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
    """How it was fitted, such as ``argmax``, ``youden`` or ``dice``."""


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


class TrainingLog(Record):
    seed: int
    best_epoch: int
    best_score: float
    monitor: str
    epochs: tuple[EpochLog, ...]
    class_weights: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)
    train_images: int
    val_images: int
    device: Annotated[str, BESIDE] = "cpu"
    precision: str = "32-true"


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
    """``imagenet (timm NAME)``, ``file sha256:…`` or ``none``."""
    training: TrainingLog | None = None
    training_config: Mapping[str, Any] = Field(default_factory=dict)
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
    """

    root: Path
    card: ModelCard

    CARD = "card.json"
    TORCH = "model.safetensors"
    ONNX = "model.onnx"
    GOLDEN = "golden.safetensors"

    @property
    def is_onnx(self) -> bool:
        return self.card.variant not in ("torch", "pruned")

    @property
    def weights(self) -> Path:
        return self.root / (self.ONNX if self.is_onnx else self.TORCH)

    @property
    def golden(self) -> Path:
        return self.root / self.GOLDEN

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
        return (self.root / self.CARD, self.weights, self.golden)

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


# -- evaluation ----------------------------------------------------------------------------------


class Score(Record):
    """One number with its interval. ``label`` is ``macro``, ``micro`` or a class name."""

    head: str
    label: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    """Images (mask heads: images with a mask) that the number is over."""


class Evaluation(Record):
    bundle_digest: str
    rows_digest: str
    model: str
    variant: str
    role: Literal["val", "test"]
    scores: tuple[Score, ...]
    confusion: Mapping[str, tuple[tuple[int, ...], ...]] = Field(default_factory=dict)
    """Exclusive heads: rows are true classes, columns decisions, in label order."""
    confidence: float = 0.95
    bytes: int = 0
    latency_ms: Annotated[float | None, BESIDE] = None

    def score(self, metric: str, *, head: str | None = None, label: str = "macro") -> Score:
        """One score. Raises DataError naming what there is.

        ``macro`` falls back to ``micro``, for the metrics that an exclusive head has once, over all images
        (accuracy, kappa, ece, brier).
        """
        for wanted in (label, "micro") if label == "macro" else (label,):
            for item in self.scores:
                if item.metric == metric and item.label == wanted and head in (None, item.head):
                    return item
        known = sorted({f"{item.head}.{item.metric}" for item in self.scores})
        raise DataError(
            f"no score {metric!r} for label {label!r}; there is {', '.join(known)}", hint="choose one of them"
        )


class Verdict(Record):
    """Why one variant was, or was not, taken by ``choose``."""

    variant: str
    chosen: bool
    reason: str
    metric: str
    value: float
    loss: float
    """Metric of the reference minus this variant's; positive is worse."""
    bytes: int
    latency_ms: Annotated[float | None, BESIDE] = None


class Choice(Record):
    """What ``select`` or ``choose`` decided, from validation rows only."""

    chosen: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Package(Whole):
    """A Bento in a folder: ``<name>.bento`` and ``package.json``."""

    root: Path
    facts: PackageFacts

    FACTS = "package.json"

    def digest(self) -> str:
        return self.facts.digest()

    @property
    def bento(self) -> Path:
        return self.root / self.facts.file

    def files(self) -> tuple[Path, ...]:
        return (self.root / self.FACTS, self.bento)


class PackageFacts(Record):
    tag: str
    """Bento tag, ``<dataset>:<first 12 of content_digest>``."""
    file: str
    content_digest: str
    """Over the bundle and the service's source; the same content has the same tag."""
    bundle_digest: str
    bytes: Annotated[int, BESIDE]
    bento_sha256: Annotated[str, BESIDE]


@dataclass(frozen=True)
class Incumbent(Whole):
    """The bundle that holds the stage to challenge; ``bundle`` is None where none does, or the candidate itself.

    Only the bundle counts in the digest, since only it is evaluated; the challenge travels beside.
    """

    challenge: Challenge
    bundle: Bundle | None = None

    def digest(self) -> str:
        return digest_of(self.bundle.digest() if self.bundle else None)


class Comparison(Record):
    """Paired comparison of candidate and incumbent on the same rows."""

    head: str
    label: str
    metric: str
    candidate: float
    incumbent: float
    difference: float
    low: float
    high: float
    margin: float
    n: int
    groups: int


class Recorded(Record):
    """Where a run was written down: the names by which ZenML, MLflow and the user know it."""

    model: str
    """``NAME@VERSION``."""
    run_id: str
    mlflow_run_id: str
    content_digest: str


class Promotion(Record):
    promoted: bool
    stage: str
    reasons: tuple[str, ...]
    candidate: str
    """Digest of the candidate's package content."""
    incumbent: str | None
    comparisons: tuple[Comparison, ...] = ()

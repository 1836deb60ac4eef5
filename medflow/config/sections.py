"""The settings of a run: frozen, one section a step, each setting beside what it sets.

Each step is handed its own section and nothing else, so that its cache key stays narrow.
``medflow.config.load`` fills these from a YAML and the command line.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Severity = Literal["error", "warning", "info", "off"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class SourceConfig(Section):
    kind: Literal["kaggle", "folder", "zip", "generated"] = "kaggle"
    path: str | None = None
    """Folder or .zip; `--source` sets kind and path together."""
    version: str = "latest"
    """Kaggle's version number, or `latest`: resolved at each run and recorded."""
    images: int = Field(600, ge=24, le=1_000_000)
    """Images to generate where kind is `generated`."""
    seed: int = 0
    """Seed of what is generated."""
    planted_faults: bool = False
    """Generate broken files, duplicates and leaks among the images."""


class IngestConfig(Section):
    fit: Literal["stretch", "pad"] = "stretch"
    """How an image meets the square frame: `stretch` fills it, `pad` keeps the aspect ratio."""
    extra_sizes: tuple[int, ...] = ()
    """Sizes stored beside those that the models name, such as an older production model's."""
    max_pixels: int = Field(100_000_000, gt=0)
    """An image that declares more pixels than this is not decoded."""


class ValidateConfig(Section):
    unreadable: Severity = "warning"
    blank: Severity = "warning"
    tiny: Severity = "warning"
    duplicate: Severity = "warning"
    """The same bytes twice with the same labels; with different labels it is `label_conflict`."""
    near_duplicate: Severity = "info"
    label_conflict: Severity = "error"
    """The same bytes under different labels."""
    label_impossible: Severity = "error"
    """A label outside the dataset's list, two classes where one is possible, or none."""
    mask_missing: Severity = "info"
    mask_empty: Severity = "info"
    mask_mismatched: Severity = "warning"
    """Mask and image differ in aspect ratio, or the mask cannot be read: the mask is not used."""
    metadata: Severity = "info"
    """Age, sex or view outside what is possible."""
    blank_std: Positive = 3.0
    """An image with a gray standard deviation (0 to 255) below this is blank."""
    tiny_pixels: int = Field(64, gt=0)
    """An image whose shorter side is below this is tiny."""
    near_duplicate_bits: int = Field(3, ge=0, le=16)
    """Two images whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates."""
    max_quarantined: Fraction = 0.2
    """Stop where more than this share of the images would be left out."""


class SplitConfig(Section):
    seed: int = 0
    train: Fraction = 0.70
    val: Fraction = 0.15
    test: Fraction = 0.15
    official: bool = False
    """Use the dataset's own lists; val is taken from its training part, by group."""
    near_duplicate_bits: int = Field(3, ge=0, le=16)
    """Near-duplicates (see `validate`) count as one group; 0 joins equal hashes only."""

    @model_validator(mode="after")
    def _adds_up(self) -> SplitConfig:
        if abs(self.train + self.val + self.test - 1.0) > 1e-9:
            raise ValueError(f"train, val and test add up to {self.train + self.val + self.test:g}, expected 1")
        if min(self.train, self.val, self.test) <= 0:
            raise ValueError("train, val and test must each be above 0")
        return self


class ModelCommon(Section):
    name: str
    """Name of the architecture; also the model's id in this run unless `id` is given."""
    id: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_]*$")
    """Short name in step names and reports, where one architecture is trained twice."""
    size: int | None = Field(None, ge=16, le=2048)
    """Input height and width; None takes configs/models.yaml."""
    pretrained: str = "imagenet"
    """`imagenet`, `none`, or the path of a .safetensors file."""
    stats: Literal["imagenet", "dataset", "unit"] | None = None
    """Mean and std: ImageNet's, the training rows', or none (0 and 1); None takes configs/models.yaml."""
    dropout: Fraction = 0.2

    @property
    def key(self) -> str:
        """The model's id in step names: lower case, digits and underscores."""
        return self.id or "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


class TimmModel(ModelCommon):
    kind: Literal["timm"] = "timm"
    hidden: tuple[int, ...] = ()
    """Widths of hidden layers between the pooled features and the labels."""


class MonaiUNet(ModelCommon):
    """The two-task UNet of the first seed: MONAI UNet, a mask head and a label head on its features."""

    kind: Literal["monai_unet"] = "monai_unet"
    name: str = "monai_unet"
    pretrained: str = "none"
    size: int | None = Field(256, ge=32, le=2048)
    stats: Literal["imagenet", "dataset", "unit"] | None = "unit"
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    features: int = Field(64, gt=0)
    """Channels that the UNet hands to both heads."""
    residual_units: int = Field(2, ge=0)
    dropout: Fraction = 0.1
    mask_hidden: int = Field(32, gt=0)
    label_hidden: tuple[int, ...] = (256, 128)
    label_dropout: tuple[Fraction, ...] = (0.5, 0.3, 0.2)
    """Before each hidden layer and before the last: one more than `label_hidden`."""

    @model_validator(mode="after")
    def _dropouts_fit(self) -> MonaiUNet:
        if len(self.label_dropout) != len(self.label_hidden) + 1:
            raise ValueError(
                f"label_dropout has {len(self.label_dropout)} values, expected {len(self.label_hidden) + 1}: "
                "one before each of label_hidden and one before the last layer"
            )
        return self


ModelConfig = Annotated[TimmModel | MonaiUNet, Field(discriminator="kind")]


class Augment(Section):
    """Augmentation of training rows, image and mask in step; probabilities are per image."""

    rotate_degrees: float = Field(10.0, ge=0, le=180)
    rotate: Fraction = 0.3
    flip: Fraction = 0.0
    """Horizontal flip. Off unless a dataset's YAML says why laterality does not matter."""
    vertical_flip: Fraction = 0.0
    brightness_contrast: Fraction = 0.0
    brightness_limit: Fraction = 0.2
    clahe: Fraction = 0.0
    noise: Fraction = 0.0
    noise_std: float = Field(5.0, ge=0, le=128)
    """In gray values, 0 to 255."""
    blur: Fraction = 0.0
    coarse_dropout: Fraction = 0.0


class Stage(Section):
    epochs: int = Field(10, ge=1, le=10_000)
    lr: Positive = 3.0e-4
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Fraction = 0.05
    """Share of the stage's steps in which the learning rate rises linearly from 0."""
    lr_min: float = Field(0.0, ge=0)
    """Where cosine ends."""
    freeze: Literal["none", "backbone"] = "none"
    patience: int = Field(10, ge=0)
    """Epochs without a better validation score before the stage ends; 0 never stops early."""


class TrainConfig(Section):
    seed: int = 0
    stages: tuple[Stage, ...] = (Stage(),)
    batch_size: int | None = Field(None, ge=1, le=65536)
    """Images a step; None takes configs/models.yaml."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients are added before each optimiser step."""
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """`auto`: bf16 where the hardware has it, fp16 on older GPUs, 32 bits on a CPU."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    class_weights: bool = True
    """Weigh classes by inverse frequency of the training rows (labels: positives against negatives)."""
    label_smoothing: Fraction = 0.0
    loss_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each head's loss, by head name; 1 where not named."""
    monitor: str = "auto"
    """`auto` (macro AUROC of the label head, else Dice), or a metric name; larger is better."""
    augment: Augment = Augment()
    workers: int = Field(0, ge=0, le=64)
    """Threads that prepare batches ahead."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """At least this long between two checkpoints; 0 writes one after every step."""


class EvaluateConfig(Section):
    resamples: int = Field(1000, ge=100, le=100_000)
    """Bootstrap resamples of groups."""
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    seed: int = 0
    batch_size: int = Field(32, ge=1)


class SelectConfig(Section):
    metric: str = "auroc"
    """Macro metric on validation rows by which models are ranked; larger is better."""


class PruneConfig(Section):
    enabled: bool = True
    ratio: float = Field(0.3, gt=0.0, lt=0.95)
    """Share of the channels of every prunable layer that is removed."""
    round_to: int = Field(8, ge=1)
    stage: Stage = Stage(epochs=3, lr=1.0e-4, warmup=0.1, patience=0)
    """Fine-tuning after pruning."""


class ExportConfig(Section):
    opset: int = Field(17, ge=17, le=23)
    tolerance: Positive = 1.0e-3
    """Largest difference of probabilities allowed between torch and ONNX; more is an error."""


class QuantizeConfig(Section):
    enabled: bool = True
    calibration_images: int = Field(128, ge=8)
    """Training rows that calibrate the activations' ranges."""
    reduce_range: Literal["auto", "on", "off"] = "auto"
    """7-bit weights; `auto`: on where the processor lacks VNNI, since 16-bit saturation costs accuracy there."""


class ChooseConfig(Section):
    metric: str = "auroc"
    margin: float = Field(0.01, ge=0)
    """A smaller variant may lose this much of the metric on validation rows."""
    mask_margin: float = Field(0.02, ge=0)
    """The same for Dice, where there is a mask head."""


class Floor(Section):
    metric: str
    value: float
    label: str = "macro"
    head: str | None = None


class PromoteConfig(Section):
    stage: Literal["staging", "production"] = "production"
    metric: str = "auroc"
    margin: float = Field(0.02, ge=0)
    """Non-inferiority: the interval of candidate minus incumbent must lie above minus this."""
    floors: tuple[Floor, ...] = ()
    """Values that the lower end of the candidate's interval must reach on test rows."""
    resamples: int = Field(2000, ge=100, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    seed: int = 0


class RunConfig(Section):
    dataset: str
    """A dataset of `medflow datasets`."""
    heads: tuple[str, ...] | None = None
    """Which of the dataset's heads to learn; None takes all."""
    source: SourceConfig = SourceConfig()
    ingest: IngestConfig = IngestConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    split: SplitConfig = SplitConfig()
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    select: SelectConfig = SelectConfig()
    prune: PruneConfig = PruneConfig()
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    choose: ChooseConfig = ChooseConfig()
    promote: PromoteConfig = PromoteConfig()

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _models_differ(self) -> RunConfig:
        keys = [model.key for model in self.models]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"two models are called {twice[0]!r}; give one of them an `id`")
        return self

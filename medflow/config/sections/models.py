"""The networks that a run may list under `models`, one class a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Fraction, Section
from medflow.config.sections.text import TextEncoder


class ModelCommon(Section):
    name: str
    """Name of the architecture; also the model's id in this run unless `id` is given."""
    id: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_]*$")
    """Short name in step names and reports, where one architecture is trained twice."""
    size: int | None = Field(None, ge=16, le=2048)
    """Input height and width; None takes configs/models.yaml."""
    pretrained: str = "imagenet"
    """`imagenet`, `none`, or a .safetensors file: its path, or s3://BUCKET/KEY, read as a source in a bucket is."""
    stats: Literal["imagenet", "dataset", "unit"] | None = None
    """Mean and std: ImageNet's, the training rows', or none (0 and 1); None takes configs/models.yaml."""
    dropout: Fraction = 0.2

    @property
    def key(self) -> str:
        """The model's id in step names: lower case, digits and underscores."""
        return self.id or "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


class LabelLayers(ModelCommon):
    """Layers between pooled features and the logits of a label head:
    [norm], then dropout, linear and ReLU for each hidden width, then dropout and linear."""

    hidden: tuple[int, ...] = ()
    """Widths of hidden layers between the pooled features and the labels."""
    head_dropout: tuple[Fraction, ...] = ()
    """Before each hidden layer and before the last: one more than `hidden`. Empty takes `dropout` everywhere."""
    head_norm: Literal["none", "layer", "batch"] = "none"
    """Norm of the pooled features, before the first dropout."""

    @property
    def dropouts(self) -> tuple[float, ...]:
        return self.head_dropout or (self.dropout,) * (len(self.hidden) + 1)

    @model_validator(mode="after")
    def _dropouts_fit_hidden(self) -> LabelLayers:
        if self.head_dropout and len(self.head_dropout) != len(self.hidden) + 1:
            raise ValueError(
                f"head_dropout has {len(self.head_dropout)} values, expected {len(self.hidden) + 1}: "
                "one before each of hidden and one before the last layer"
            )
        return self


class TimmModel(LabelLayers):
    """Any classifier of timm by name; label heads only.

    `{kind: timm, name: resnet50}`, or with a tag of its weights, `name: convnextv2_tiny.fcmae_ft_in22k_in1k`.
    """

    kind: Literal["timm"] = "timm"


class MonaiUNet(ModelCommon):
    """The two-task UNet of the first published system: MONAI UNet, a mask head and a label head on its features.

    `{kind: monai_unet}`; label and mask heads.
    """

    kind: Literal["monai_unet"] = "monai_unet"
    name: Literal["monai_unet"] = "monai_unet"
    """This kind has one architecture: another is another `kind`. `id` names it otherwise in step names."""
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


class EncoderModel(LabelLayers):
    """A network around an encoder that is named by itself, so that both names make the model's id."""

    encoder: str

    @property
    def key(self) -> str:
        named = f"{self.name}_{self.encoder}".lower()
        return self.id or "".join(letter if letter.isalnum() else "_" for letter in named)


class SmpModel(EncoderModel):
    """A decoder of segmentation-models-pytorch over any encoder: label heads on the encoder's levels, a mask head on
    the decoder.

    `{kind: smp, name: unet, encoder: resnet34}`; with an encoder of timm's, `encoder: convnextv2_tiny`.
    """

    kind: Literal["smp"] = "smp"
    name: Literal["unet", "unetplusplus", "deeplabv3", "deeplabv3plus", "segformer"]
    encoder: str = "resnet34"
    """A name of SMP's own (`resnet34`, `efficientnet-b3`, `mit_b0`), or else of timm's."""
    label_levels: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((3, 4, 5), min_length=1)
    """Levels of the encoder, 1 (half the size) to 5 (a 32nd), whose averages a label head reads, side by side."""
    decoder_channels: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Widths of the decoder: five for the UNets, from the deepest; one for the others. Empty takes SMP's own."""

    @model_validator(mode="after")
    def _decoder_fits(self) -> SmpModel:
        wanted = 5 if self.name.startswith("unet") else 1
        if self.decoder_channels and len(self.decoder_channels) != wanted:
            raise ValueError(
                f"decoder_channels has {len(self.decoder_channels)} values, expected {wanted} for {self.name}, or none"
            )
        return self


class DualPathModel(EncoderModel):
    """The fifth published system's network: global and local paths over the levels of one encoder, CBAM attention, a
    feature pyramid, and their fusion; label heads only.

    `{kind: dual_path}`, or over another encoder of timm's, `{kind: dual_path, encoder: resnet50}`.
    """

    kind: Literal["dual_path"] = "dual_path"
    name: Literal["dual_path"] = "dual_path"
    """This kind has one architecture, over any `encoder`: another is another `kind`. `id` names it otherwise."""
    encoder: str = "densenet121"
    """A name of timm's; it must give levels of features, as a plain vision transformer does not."""
    pyramid: int = Field(256, ge=8)
    """Channels of every level of the feature pyramid and of the local path (256 in Lin et al. 2017)."""
    reduction: int = Field(16, ge=1)
    """By how much channel attention narrows its hidden layer (16 in Woo et al. 2018)."""
    hidden: tuple[int, ...] = (512,)
    dropout: Fraction = 0.5


class ImageTextModel(LabelLayers):
    """Any network of timm beside a transformers encoder that reads the image's report; label heads only.

    `{kind: image_text, name: resnet50}` reads with BioBERT; `text: {encoder: small}` with a small encoder of its own.
    A missing report is no error: a learned vector stands for it. A flip turns the image and not the words: leave
    `train.augment.flip` at 0 where reports say left and right.
    """

    kind: Literal["image_text"] = "image_text"
    text: TextEncoder = TextEncoder()
    fusion: Literal["concat", "cross_attention", "gated"] = "concat"
    """How image and report become one vector: side by side, by attention of the image's positions to the report's
    tokens, or by a gate for each unit."""
    fusion_width: int = Field(256, ge=8, le=4096)
    """Of that vector."""
    attention_heads: int = Field(4, ge=1, le=64)
    """Of `cross_attention`; they must divide `fusion_width`."""
    text_dropout: Fraction = 0.2
    """Share of the reports that are left out in each training step, so that the model can do without."""

    @property
    def key(self) -> str:
        return self.id or f"{super().key}_text"

    @model_validator(mode="after")
    def _heads_divide(self) -> ImageTextModel:
        if self.fusion_width % self.attention_heads:
            raise ValueError(
                f"attention_heads is {self.attention_heads}, expected a divisor of fusion_width, {self.fusion_width}"
            )
        return self


ModelConfig = Annotated[TimmModel | MonaiUNet | SmpModel | DualPathModel | ImageTextModel, Field(discriminator="kind")]

"""The networks that a run may list under `models`, one class a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Fraction, Section


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

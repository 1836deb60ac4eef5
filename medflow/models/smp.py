"""Networks of segmentation-models-pytorch: an encoder, label heads on its levels, a decoder for each mask head.

Shapes: the encoder gives a list of maps, level 0 the input itself and level i of (n, channels_i, h / 2^i, w / 2^i),
at most ``output_stride`` smaller where DeepLab dilates the last ones. A decoder takes the whole list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medflow import zoo
from medflow.config.sections import SmpModel
from medflow.errors import ModelError
from medflow.models.encoders import REFUSALS, size_options
from medflow.models.label_heads import label_head
from medflow.models.network import Parts
from medflow.records import HeadSpec, PixelSpec, Preprocess

TIMM_PREFIX = "tu-"
#: How much smaller than the input the deepest level is, where it is not 32.
STRIDES = {"deeplabv3": 8, "deeplabv3plus": 16}


def smp_network(model: SmpModel, heads: tuple[HeadSpec, ...], preprocess: Preprocess) -> Parts:
    """The encoder as backbone, and a module a head. Raises ModelError for an unknown encoder or an odd size."""
    spec = preprocess.pixels
    whole = whole_network(model, spec)
    _check_size(model, spec.height, int(whole.encoder.output_stride))
    widths = list(whole.encoder.out_channels)
    made: dict[str, nn.Module] = {}
    for head in heads:
        if head.kind == "mask":
            # A second mask gets a decoder of its own.
            part = whole_network(model, spec) if any(isinstance(one, MaskHead) for one in made.values()) else whole
            made[head.name] = MaskHead(part.decoder, part.segmentation_head)
        else:
            made[head.name] = LevelsHead(model, widths, len(head.labels))
    return Parts(whole.encoder, made)


class LevelsHead(nn.Module):
    """A label head on some levels of an encoder: each averaged over its area, side by side, then ``label_head``."""

    def __init__(self, model: SmpModel, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        empty = [level for level in model.label_levels if not widths[level]]
        if empty:
            raise ModelError(
                f"level {empty[0]} of encoder {model.encoder!r} has no channels, and label_levels names it",
                hint="its levels begin at 2, a quarter of the size: leave 1 out of `label_levels`",
            )
        self.levels = model.label_levels
        self.labels = label_head(model, sum(widths[level] for level in self.levels), outputs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        pooled = [features[level].mean(dim=(2, 3)) for level in self.levels]
        return self.labels(torch.cat(pooled, dim=1))  # type: ignore[no-any-return]


class MaskHead(nn.Module):
    """SMP's decoder and its last convolution: logits (n, 1, h, w)."""

    def __init__(self, decoder: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.last = last

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.last(self.decoder(list(features)))  # type: ignore[no-any-return]


def whole_network(model: SmpModel, spec: PixelSpec) -> Any:
    """SMP's own network of a config, at random. Raises ModelError."""
    smp = zoo.smp()

    families = {
        "unet": smp.Unet,
        "unetplusplus": smp.UnetPlusPlus,
        "deeplabv3": smp.DeepLabV3,
        "deeplabv3plus": smp.DeepLabV3Plus,
        "segformer": smp.Segformer,
    }
    encoder = encoder_name(model)
    try:
        return families[model.name](
            encoder_name=encoder,
            encoder_weights=None,
            in_channels=spec.channels,
            classes=1,
            **_decoder_options(model),
            **_encoder_options(encoder, spec),
        )
    except (*REFUSALS, NotImplementedError) as error:
        raise ModelError(
            f"segmentation-models-pytorch could not make {model.name} over {model.encoder!r}: {_first_line(error)}",
            hint="try another encoder, such as `encoder: resnet34`",
        ) from error


def encoder_name(model: SmpModel) -> str:
    """The encoder as SMP names it: its own first, else timm's with SMP's prefix. Raises ModelError."""
    timm = zoo.timm()
    from segmentation_models_pytorch.encoders import encoders

    name = model.encoder
    if name in encoders:
        return name
    if timm.is_model(name.removeprefix(TIMM_PREFIX)):
        return TIMM_PREFIX + name.removeprefix(TIMM_PREFIX)
    import difflib

    near = difflib.get_close_matches(name, [*encoders, *timm.list_models()], n=3)
    raise ModelError(
        f"neither segmentation-models-pytorch nor timm has an encoder {name!r}",
        hint=f"nearest names: {', '.join(near)}" if near else "for example `encoder: resnet34`",
    )


def filled_encoder(model: SmpModel, spec: PixelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """The encoder of a config with published weights, made for 3 channels and for ImageNet's size."""
    from segmentation_models_pytorch.encoders import get_encoder

    name, stride = encoder_name(model), STRIDES.get(model.name, 32)
    if name.startswith(TIMM_PREFIX):
        encoder: nn.Module = get_encoder(
            name,
            in_channels=spec.channels,
            weights=True,
            output_stride=stride,
            pretrained_cfg_overlay={"state_dict": dict(weights)},
            **_encoder_options(name, spec),
        )
        return encoder
    own: Any = get_encoder(name, in_channels=3, weights=None, output_stride=stride)
    own.load_state_dict(dict(weights))
    # Adds up the first layer's weights, as timm does.
    own.set_in_channels(spec.channels, pretrained=True)
    return own  # type: ignore[no-any-return]


def _encoder_options(encoder: str, spec: PixelSpec) -> dict[str, int]:
    timm_name = encoder.removeprefix(TIMM_PREFIX)
    return size_options(timm_name, spec) if timm_name != encoder else {}


def _decoder_options(model: SmpModel) -> dict[str, object]:
    if not model.decoder_channels:
        return {}
    if model.name.startswith("unet"):
        return {"decoder_channels": model.decoder_channels}
    name = "decoder_segmentation_channels" if model.name == "segformer" else "decoder_channels"
    return {name: model.decoder_channels[0]}


def _check_size(model: SmpModel, size: int, stride: int) -> None:
    if size % stride:
        raise ModelError(
            f"{model.name} over {model.encoder!r} makes its input {stride} times smaller, and {size} is no multiple of "
            f"{stride}",
            hint=f"set the model's `size` to {max(stride, round(size / stride) * stride)}",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

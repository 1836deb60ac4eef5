"""Networks from their config: any timm classifier, or MONAI's UNet with a label head and a mask head.

``Network`` takes the stored pixels as they are, uint8 (n, height, width, channels), normalizes them
inside, and gives float32 logits by head name. To add a family: a config class with its ``kind``
in ``config.sections``, and one case in ``_parts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from medflow.config.sections import ModelConfig, MonaiUNet, TimmModel
from medflow.errors import ArtifactError, ModelError
from medflow.pretrained import load_pretrained
from medflow.records import Bundle, ChannelStats, HeadSpec, Normalization, Pixels, Preprocess, PrunedLayer

__all__ = ["Network", "build", "load", "load_pretrained", "preprocess_for", "read_config", "tensors_of"]

#: ImageNet's channel statistics, in 0 to 1, for models that bring none of their own.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """A backbone and one small module a head: pixels in, logits out.

    ``forward`` takes uint8 (n, height, width, channels) and returns, by head name, float32 (n, labels),
    or (n, 1, height, width) for a mask.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module], preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        # Not persistent: they come from the card, and one truth is enough.
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        # A view, not a copy: contiguous NHWC is channels-last NCHW.
        pixels = images.permute(0, 3, 1, 2)
        features = self.backbone((pixels.float() / 255.0 - self.mean) / self.std)
        return {name: head(features).float() for name, head in self.heads.items()}

    def parameters_of(self, part: Literal["backbone", "head"]) -> list[nn.Parameter]:
        module = self.backbone if part == "backbone" else self.heads
        return list(module.parameters())


def build(
    model: ModelConfig,
    heads: tuple[HeadSpec, ...],
    preprocess: Preprocess,
    *,
    pruned: tuple[PrunedLayer, ...] = (),
    seed: int = 0,
) -> Network:
    """The network of a config, initialised at random from ``seed`` alone; the global generator is left as it was.

    ``pruned`` gives the widths of a pruned network's layers. Raises ModelError for an unknown architecture,
    a head that the family has not, or a size that it cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(*_parts(model, heads, preprocess), preprocess)
    _narrow(network, pruned)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def load(bundle: Bundle) -> Network:
    """The trained network of a torch bundle, in eval mode. Raises ArtifactError if its weights do not fit its card."""
    if bundle.is_onnx:
        raise ArtifactError(
            f"a bundle of variant {bundle.card.variant!r} holds a graph, no torch weights",
            hint="open it with medflow.scoring.open_scorer, which takes every variant",
        )
    card = bundle.card
    network = build(read_config(card.model), card.heads, card.preprocess, pruned=card.pruned)
    try:
        network.load_state_dict(load_file(bundle.weights))
    except (RuntimeError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{bundle.weights} does not fit its card: {str(error).splitlines()[0]}",
            hint="`medflow verify` finds damaged artifacts; run the step that made this one again",
        ) from error
    return network.eval()


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The state as safetensors takes it: contiguous, on the CPU, detached from the network."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}


def read_config(section: Mapping[str, object]) -> ModelConfig:
    """``ModelCard.model`` as a config again."""
    return TypeAdapter(ModelConfig).validate_python(dict(section))


def preprocess_for(model: ModelConfig, normalization: Normalization, pixels: Pixels) -> Preprocess:
    """Pixel spec and statistics of a model's input, from the store of its size.

    ``stats: imagenet`` means those its ImageNet weights were trained with, averaged for gray images, where
    timm sums the first layer's weights. Raises ModelError where no store or statistics have the model's size.
    """
    spec = next((store.spec for store in pixels.index.stores if store.spec.height == model.size), None)
    measured = next((entry for entry in normalization.sizes if entry.height == model.size), None)
    if spec is None or (measured is None and model.stats == "dataset"):
        stored = ", ".join(str(store.spec.height) for store in pixels.index.stores) or "none"
        raise ModelError(
            f"model {model.key!r} takes {model.size} pixels, and the stored sizes are {stored}",
            hint="set the model's `size` to a stored one, or run `ingest` again",
        )
    mean, std = _statistics(model, measured)
    if len(mean) != spec.channels:
        mean, std = (sum(mean) / len(mean),) * spec.channels, (sum(std) / len(std),) * spec.channels
    return Preprocess(pixels=spec, mean=mean, std=std)


def _statistics(model: ModelConfig, measured: ChannelStats | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if model.stats == "dataset" and measured is not None:
        return measured.mean, measured.std
    if model.stats == "unit":
        return (0.0,), (1.0,)
    if isinstance(model, TimmModel):
        import timm

        card = timm.get_pretrained_cfg(model.name)
        if card is not None:
            return tuple(card.mean), tuple(card.std)
    return IMAGENET_MEAN, IMAGENET_STD


# -- families ------------------------------------------------------------------------------------


def _parts(
    model: ModelConfig, heads: tuple[HeadSpec, ...], preprocess: Preprocess
) -> tuple[nn.Module, dict[str, nn.Module]]:
    match model:
        case TimmModel():
            return _timm(model, heads, preprocess)
        case MonaiUNet():
            return _monai_unet(model, heads, preprocess)


def _timm(
    model: TimmModel, heads: tuple[HeadSpec, ...], preprocess: Preprocess
) -> tuple[nn.Module, dict[str, nn.Module]]:
    masks = [head.name for head in heads if head.kind == "mask"]
    if masks:
        labels = ", ".join(head.name for head in heads if head.kind != "mask")
        raise ModelError(
            f"model {model.key!r} is of kind timm, which has no mask head, and {masks[0]!r} is a mask",
            hint=f"use `kind: monai_unet`, which has one, or learn the labels alone with `heads=[{labels}]`",
        )
    backbone = _timm_backbone(model, preprocess)
    # After pooling; `num_features` is the width before it, which differs for MobileNetV3 and its like.
    width: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return backbone, {head.name: _classifier(model, int(width), len(head.labels)) for head in heads}


def _timm_backbone(model: TimmModel, preprocess: Preprocess) -> nn.Module:
    import timm

    if not timm.is_model(model.name):
        import difflib

        near = difflib.get_close_matches(model.name, timm.list_models(), n=3)
        raise ModelError(
            f"timm {timm.__version__} has no model {model.name!r}",
            hint=f"nearest names: {', '.join(near)}" if near else "timm.list_models() lists all names",
        )
    options: dict[str, Any] = {"num_classes": 0, "in_chans": preprocess.pixels.channels}
    card = timm.get_pretrained_cfg(model.name)
    if card is not None and card.fixed_input_size:
        options["img_size"] = preprocess.pixels.height
    try:
        return timm.create_model(model.name, pretrained=False, **options)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ModelError(
            f"timm could not make {model.name!r} for {preprocess.pixels.height} pixels: {error}",
            hint="check the model's name and size",
        ) from error


def _classifier(model: TimmModel, width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(model.dropout)]
    for hidden in model.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(model.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _monai_unet(
    model: MonaiUNet, heads: tuple[HeadSpec, ...], preprocess: Preprocess
) -> tuple[nn.Module, dict[str, nn.Module]]:
    # 14 s of CPU, since MONAI imports all of itself, 9 s where torchvision is loaded already;
    # its modules import one another in circles, so there is no way to this one class alone.
    from monai.networks.nets import UNet

    strides = (2,) * (len(model.channels) - 1)
    multiple, size = 2 ** len(strides), preprocess.pixels.height
    if size % multiple:
        raise ModelError(
            f"a UNet of {len(model.channels)} levels halves its input {len(strides)} times, and {size} is no multiple "
            f"of {multiple}",
            hint=f"set the model's `size` to {max(multiple, size // multiple * multiple)}",
        )
    backbone = UNet(
        spatial_dims=2,
        in_channels=preprocess.pixels.channels,
        out_channels=model.features,
        channels=model.channels,
        strides=strides,
        num_res_units=model.residual_units,
        norm="BATCH",
        dropout=model.dropout,
    )
    make = {"mask": _mask_head, "exclusive": _label_head, "independent": _label_head}
    return backbone, {head.name: make[head.kind](model, len(head.labels)) for head in heads}


def _mask_head(model: MonaiUNet, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(model.features, model.mask_hidden, kernel_size=3, padding=1),
        nn.BatchNorm2d(model.mask_hidden),
        nn.ReLU(),
        nn.Conv2d(model.mask_hidden, outputs, kernel_size=1),
    )


def _label_head(model: MonaiUNet, outputs: int) -> nn.Sequential:
    """Global average pool, then Dropout, Linear, ReLU, BatchNorm for each hidden width, then Dropout, Linear."""
    if len(model.label_dropout) != len(model.label_hidden) + 1:
        raise ModelError(
            f"label_dropout has {len(model.label_dropout)} values for {len(model.label_hidden)} hidden layers",
            hint=f"give {len(model.label_hidden) + 1}: one before each hidden layer and one before the labels",
        )
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width = model.features
    for hidden, dropout in zip(model.label_hidden, model.label_dropout[:-1], strict=True):
        layers += [nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU(), nn.BatchNorm1d(hidden)]
        width = hidden
    return nn.Sequential(*layers, nn.Dropout(model.label_dropout[-1]), nn.Linear(width, outputs))


# -- pruned layers -------------------------------------------------------------------------------


def _narrow(network: nn.Module, pruned: tuple[PrunedLayer, ...]) -> None:
    """Give every named layer the widths that pruning left; its weights are loaded afterwards."""
    for entry in pruned:
        parent, _, child = entry.name.rpartition(".")
        setattr(network.get_submodule(parent), child, _narrowed(network.get_submodule(entry.name), entry))


def _narrowed(layer: nn.Module, entry: PrunedLayer) -> nn.Module:
    """A copy of one layer with other widths. timm's subclasses keep their class, so their forward stays theirs."""
    for name, value in _widths(layer, entry).items():
        setattr(layer, name, value)
    for name, shape in _shapes(layer).items():
        current = getattr(layer, name)
        if isinstance(current, nn.Parameter):
            setattr(layer, name, nn.Parameter(torch.zeros(shape, dtype=current.dtype)))
        elif isinstance(current, Tensor):
            setattr(layer, name, torch.zeros(shape, dtype=current.dtype))
    return layer


def _widths(layer: nn.Module, entry: PrunedLayer) -> dict[str, int | tuple[int, ...]]:
    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            depthwise = layer.groups == layer.in_channels and layer.groups > 1
            groups = entry.kept_in if depthwise else layer.groups
            return {"in_channels": entry.kept_in, "out_channels": entry.kept_out, "groups": groups}
        case nn.Linear():
            return {"in_features": entry.kept_in, "out_features": entry.kept_out}
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return {"num_features": entry.kept_out}
        case nn.LayerNorm():
            return {"normalized_shape": (entry.kept_out,)}
        case nn.PReLU():
            return {"num_parameters": entry.kept_out}
    raise ModelError(
        f"layer {entry.name!r} is a {type(layer).__name__}, which cannot be rebuilt at another width",
        hint="leave layers of this kind out of pruning",
    )


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    match layer:
        case nn.Conv2d():
            weight = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
            return {"weight": weight, "bias": (layer.out_channels,)}
        case nn.ConvTranspose2d():
            weight = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
            return {"weight": weight, "bias": (layer.out_channels,)}
        case nn.Linear():
            return {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))
        case nn.LayerNorm():
            return dict.fromkeys(("weight", "bias"), tuple(layer.normalized_shape))
        case nn.PReLU():
            return {"weight": (layer.num_parameters,)}
    return {}

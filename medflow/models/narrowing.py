"""Layers of a pruned network at the widths that its card gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medflow import zoo
from medflow.errors import ModelError
from medflow.records import PrunedLayer


def narrow(network: nn.Module, pruned: tuple[PrunedLayer, ...]) -> None:
    """Give every named layer the widths that pruning left; its weights are loaded afterwards."""
    for entry in pruned:
        parent, _, child = entry.name.rpartition(".")
        setattr(network.get_submodule(parent), child, _narrowed(network.get_submodule(entry.name), entry))


def _narrowed(layer: nn.Module, entry: PrunedLayer) -> nn.Module:
    """A copy of one layer with other widths. timm's subclasses keep their class, so their forward stays theirs."""
    for name, value in _widths(layer, entry).items():
        setattr(layer, name, value)
    for name, shape in _shapes(layer, entry).items():
        current = getattr(layer, name)
        if isinstance(current, nn.Parameter):
            setattr(layer, name, nn.Parameter(torch.zeros(shape, dtype=current.dtype)))
        elif isinstance(current, Tensor):
            setattr(layer, name, torch.zeros(shape, dtype=current.dtype))
    return layer


def width_of(layer: nn.Module) -> tuple[int, int] | None:
    """(in, out) channels of a layer that can be rebuilt at another width, or None."""
    GlobalResponseNorm = zoo.timm().layers.grn.GlobalResponseNorm

    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            return layer.in_channels, layer.out_channels
        case nn.Linear():
            return layer.in_features, layer.out_features
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return layer.num_features, layer.num_features
        case nn.LayerNorm():
            return layer.normalized_shape[0], layer.normalized_shape[0]
        case nn.PReLU():
            return layer.num_parameters, layer.num_parameters
        case GlobalResponseNorm():
            return len(layer.weight), len(layer.weight)
    return None


def _widths(layer: nn.Module, entry: PrunedLayer) -> dict[str, int | tuple[int, ...]]:
    """The attributes that say a layer's width, at the widths of ``entry``."""
    GlobalResponseNorm = zoo.timm().layers.grn.GlobalResponseNorm

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
        case GlobalResponseNorm():
            return {}  # it knows its width by its weights alone
    raise ModelError(
        f"layer {entry.name!r} is a {type(layer).__name__}, which cannot be rebuilt at another width",
        hint="leave layers of this kind out of pruning",
    )


def _shapes(layer: nn.Module, entry: PrunedLayer) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer whose attributes have been set."""
    GlobalResponseNorm = zoo.timm().layers.grn.GlobalResponseNorm

    match layer:
        case GlobalResponseNorm():
            return dict.fromkeys(("weight", "bias"), (entry.kept_out,))
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

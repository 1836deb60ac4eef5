"""timm's networks as backbones: by name, for a size and a number of channels, whole or as levels of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medflow import zoo
from medflow.errors import ModelError
from medflow.records import HeadSpec, PixelSpec

#: What timm raises for a size, a tag or an option that an architecture cannot have.
REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, AttributeError, KeyError)


def timm_backbone(
    name: str, spec: PixelSpec, *, levels: bool = False, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """timm's network ``name`` without its classifier: pooled features (n, width), or with ``levels`` a list of maps.

    ``weights`` is a checkpoint as timm publishes it; timm knows how its tensors are renamed, how 3 input channels
    become 1 (their weights are added up) and how position embeddings reach another size. Raises ModelError.
    """
    timm = zoo.timm()

    check_name(name)
    options: dict[str, Any] = {"features_only": True} if levels else {"num_classes": 0}
    options |= size_options(name, spec)
    if weights is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    try:
        backbone: nn.Module = timm.create_model(name, in_chans=spec.channels, **options)
    except REFUSALS as error:
        raise ModelError(
            f"timm could not make {name!r} for {spec.height} pixels: {str(error).splitlines()[0]}",
            hint="check the model's name and size",
        ) from error
    if not levels:
        _check_patches(backbone, name, spec.height)
    return backbone


def size_options(name: str, spec: PixelSpec) -> dict[str, int]:
    """What timm must be told of the input's size: nothing for a network that takes any."""
    timm = zoo.timm()

    card = timm.get_pretrained_cfg(name)
    return {"img_size": spec.height} if card is not None and card.fixed_input_size else {}


def refuse_masks(kind: str, key: str, heads: tuple[HeadSpec, ...]) -> None:
    """Raises ModelError where a mask is asked of a family that gives labels alone."""
    masks = [head.name for head in heads if head.kind == "mask"]
    if masks:
        labels = ", ".join(head.name for head in heads if head.kind != "mask")
        raise ModelError(
            f"model {key!r} is of kind {kind}, which has no mask head, and {masks[0]!r} is a mask",
            hint=f"use `kind: smp` or `kind: monai_unet`, which have one, or learn the labels alone with "
            f"`heads=[{labels}]`",
        )


def check_name(name: str) -> None:
    """Raises ModelError where timm has no model of this name."""
    timm = zoo.timm()

    if timm.is_model(name):
        return
    import difflib

    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    raise ModelError(
        f"timm {timm.__version__} has no model {name!r}",
        hint=f"nearest names: {', '.join(near)}" if near else "timm.list_models() lists all names",
    )


def _check_patches(backbone: nn.Module, name: str, size: int) -> None:
    """A vision transformer cuts its input into whole patches, and would leave out what remains at the border."""
    from timm.layers import PatchEmbed

    sides = [module.patch_size[0] for module in backbone.modules() if isinstance(module, PatchEmbed)]
    side = max(sides, default=1)
    if size % side:
        raise ModelError(
            f"{name!r} cuts its input into patches of {side} pixels, and {size} is no multiple of {side}",
            hint=f"set the model's `size` to {max(side, size // side * side)}",
        )

"""Any classifier of timm, by name, with a label head of our own for each head."""

from __future__ import annotations

from typing import Any

from torch import nn

from medflow.config.sections import TimmModel
from medflow.errors import ModelError
from medflow.records import HeadSpec, Preprocess


def timm_classifier(
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

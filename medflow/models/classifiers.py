"""Any classifier of timm, by name, with a label head of our own for each head."""

from __future__ import annotations

from typing import Any

from medflow.config.sections import TimmModel
from medflow.models.encoders import refuse_masks, timm_backbone
from medflow.models.label_heads import label_head
from medflow.models.network import Parts
from medflow.records import HeadSpec, Preprocess


def timm_classifier(model: TimmModel, heads: tuple[HeadSpec, ...], preprocess: Preprocess) -> Parts:
    """timm's pooled features (n, width), and label heads on them. Raises ModelError."""
    refuse_masks(model.kind, model.key, heads)
    backbone: Any = timm_backbone(model.name, preprocess.pixels)
    # After pooling; `num_features` is the width before it, which differs for MobileNetV3 and its like.
    width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    return Parts(backbone, {head.name: label_head(model, width, len(head.labels)) for head in heads})

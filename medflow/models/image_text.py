"""An image backbone of timm beside a transformers encoder that reads the report, and their fusion.

A missing report is no error: one learned vector stands for it, as the only token of a report of its own. In training
reports are also left out at random (``text_dropout``), so that the network can do without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medflow.config.sections import ImageTextModel
from medflow.errors import ModelError
from medflow.models.encoders import refuse_masks, timm_backbone
from medflow.models.fusion import Concatenation, CrossAttention, Gated
from medflow.models.label_heads import label_head
from medflow.models.network import Parts
from medflow.records import HeadSpec, Preprocess, TextReading


def image_text(
    model: ImageTextModel, heads: tuple[HeadSpec, ...], preprocess: Preprocess, text: TextReading | None
) -> Parts:
    """Raises ModelError for mask heads, an unknown backbone, or where nothing says how reports are read."""
    refuse_masks(model.kind, model.key, heads)
    if text is None:
        raise ModelError(
            f"model {model.key!r} reads reports, and nothing says with which encoder and vocabulary",
            hint="make it with medflow.text_encoder.prepare, as training does",
        )
    backbone: Any = timm_backbone(model.name, preprocess.pixels)
    width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    if model.fusion == "cross_attention":
        width = int(backbone.num_features)
        backbone.reset_classifier(0, "")  # the feature map itself, not its average
    encoder = make_encoder(text)
    neck = Reader(encoder, _fusion(model, width, encoder.config.hidden_size), model.text_dropout)
    made = {head.name: label_head(model, model.fusion_width, len(head.labels)) for head in heads}
    return Parts(backbone, made, neck, paced=(encoder,) if text.pretrained else ())


def make_encoder(text: TextReading) -> Any:
    """The transformers encoder of a card, without weights of its own. Raises ModelError for an unknown one."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.for_model(**text.encoder)
        # Plain attention: the same numbers on every machine, and it can be traced to ONNX.
        encoder: Any = AutoModel.from_config(config, attn_implementation="eager")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"transformers cannot make the text encoder: {str(error).splitlines()[0]}",
            hint="name another `text.encoder`, of the BERT family",
        ) from error
    if "pooler" in dict(encoder.named_children()):
        encoder.pooler = None  # nothing reads it, and weights without a gradient stop a training on several GPUs
    return encoder


def _fusion(model: ImageTextModel, image: int, text: int) -> nn.Module:
    match model.fusion:
        case "concat":
            return Concatenation(image, text, model.fusion_width)
        case "gated":
            return Gated(image, text, model.fusion_width)
        case "cross_attention":
            return CrossAttention(image, text, model.fusion_width, model.attention_heads)


class Reader(nn.Module):
    """Between backbone and heads: reads the reports and joins them to the images.

    ``forward`` takes the backbone's output, (n, v) or a feature map, beside ``input_ids`` and ``attention_mask``, int64
    (n, t); a row whose mask is all 0 has no report, and without the two no image has one. It returns (n, h).
    """

    def __init__(self, encoder: Any, fusion: nn.Module, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.fusion = fusion
        self.dropout = dropout
        self.missing = nn.Parameter(torch.randn(encoder.config.hidden_size) * encoder.config.initializer_range)

    def forward(self, image: Tensor, input_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        if input_ids is None or attention_mask is None:
            input_ids = attention_mask = torch.zeros((len(image), 1), dtype=torch.long, device=image.device)
        there = self._there(attention_mask).unsqueeze(1)
        # A report of no token has no softmax: a missing one is read as its first filler, and then replaced.
        first = torch.arange(attention_mask.shape[1], device=image.device) == 0
        mask = (there & (attention_mask > 0)) | (~there & first)
        words = self.encoder(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        words = torch.where(there.unsqueeze(2), words, self.missing.to(words.dtype))
        return self.fusion(image, words, mask)

    def _there(self, attention_mask: Tensor) -> Tensor:
        """bool (n,): the row has a report, and it is not left out this time."""
        there = attention_mask.amax(dim=1) > 0
        if self.training and self.dropout:
            there = there & (torch.rand(len(there), device=there.device) >= self.dropout)
        return there

"""Three ways to make one vector of an image and its report.

Shapes: n images, p positions of the image's feature map, t tokens, v and w the widths of image and text, h the width
of what comes out. A row of ``mask``, bool (n, t), has at least one True.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concatenation(nn.Module):
    """Both vectors side by side, then Linear and ReLU."""

    def __init__(self, image: int, text: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(image + text, width), nn.ReLU())

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """``image`` (n, v), ``text`` (n, t, w) → (n, h)."""
        return self.mix(torch.cat([image, mean_token(text, mask)], dim=1))


class Gated(nn.Module):
    """A gate for each unit decides how much of it is the image's: the gated multimodal unit of Arevalo et al. 2017,
    arXiv 1702.01992, section 3.1.

    h = z · tanh(W_v v) + (1 − z) · tanh(W_t t) with z = σ(W_z [v; t]).
    """

    def __init__(self, image: int, text: int, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(image, width)
        self.text = nn.Linear(text, width)
        self.gate = nn.Linear(image + text, width)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """``image`` (n, v), ``text`` (n, t, w) → (n, h)."""
        words = mean_token(text, mask)
        gate = torch.sigmoid(self.gate(torch.cat([image, words], dim=1)))
        return gate * torch.tanh(self.image(image)) + (1 - gate) * torch.tanh(self.text(words))


class CrossAttention(nn.Module):
    """Every position of the image looks into the report (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2).

    Queries are the positions of the feature map, keys and values the tokens; added to the positions, normalized, and
    averaged over them.
    """

    def __init__(self, image: int, text: int, width: int, heads: int) -> None:
        super().__init__()
        self.image = nn.Linear(image, width)
        self.text = nn.Linear(text, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """``image`` is a feature map as timm gives it, ``text`` (n, t, w) → (n, h)."""
        positions, words = self.image(positions_of(image, self.image.in_features)), self.text(text)
        seen, _ = self.attention(positions, words, words, key_padding_mask=~mask, need_weights=False)
        return self.norm(positions + seen).mean(dim=1)


def mean_token(text: Tensor, mask: Tensor) -> Tensor:
    """(n, w): the mean over the tokens that ``mask`` marks."""
    weights = mask.unsqueeze(2).to(text.dtype)
    return (text * weights).sum(dim=1) / weights.sum(dim=1)


def positions_of(features: Tensor, width: int) -> Tensor:
    """timm's unpooled features as (n, p, v): they come as (n, v, y, x), (n, y, x, v) or (n, p, v)."""
    if features.ndim == 3:
        return features
    if features.shape[1] == width:
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2)

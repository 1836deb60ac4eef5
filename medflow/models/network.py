"""What every family makes: a backbone and one module a head, from stored pixels to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medflow.records import Preprocess


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

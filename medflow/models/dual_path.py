"""The fifth published system's network: one encoder, a global and a local path, a feature pyramid, and their fusion.

Shapes for DenseNet-121 and an input (n, c, h, w), p channels in the pyramid (256)::

    encoder    C2 (n, 256, h/4, w/4)   C3 (n, 512, h/8, w/8)   C4 (n, 1024, h/16, w/16)   C5 (n, 1024, h/32, w/32)
    pyramid    P2 … P5, each of p channels at the size of its C
    global     CBAM(C5), averaged over the image                                   (n, 1024)
    local      CBAM(P2), a 3 x 3 convolution, the maximum over the image           (n, p)
    fusion     P3, P4, P5 averaged, beside both paths                              (n, 1024 + 4 p) → label heads

The system says that there are two paths, CBAM, an FPN and multi-scale fusion, and no more. The local path here is the
finest level at full resolution, of which the maximum is taken: a small finding fills a few of its places and would
vanish in an average. Attention chooses the places, so no crop is cut out, the graph is static, and one pass over the
encoder serves both paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medflow.config.sections import DualPathModel
from medflow.errors import ModelError
from medflow.models.attention import Cbam
from medflow.models.encoders import refuse_masks, timm_backbone
from medflow.models.label_heads import label_head
from medflow.models.network import Parts
from medflow.records import HeadSpec, Preprocess

#: How much smaller than the input a level is: C2 to C5.
REDUCTIONS = (4, 8, 16, 32)


def dual_path(model: DualPathModel, heads: tuple[HeadSpec, ...], preprocess: Preprocess) -> Parts:
    """Raises ModelError for an encoder without levels, and for a mask head."""
    refuse_masks(model.kind, model.key, heads)
    backbone: Any = timm_backbone(model.encoder, preprocess.pixels, levels=True)
    found = dict(zip(backbone.feature_info.reduction(), backbone.feature_info.channels(), strict=True))
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC" or not set(REDUCTIONS) <= set(found):
        raise ModelError(
            f"encoder {model.encoder!r} gives no maps (n, channels, height, width) 4, 8, 16 and 32 times smaller than "
            f"its input; it gives {', '.join(str(item) for item in found)}",
            hint="use a convolutional encoder, such as `encoder: densenet121`",
        )
    neck = Fusion([found[item] for item in REDUCTIONS], model.pyramid, model.reduction)
    return Parts(backbone, {head.name: label_head(model, neck.width, len(head.labels)) for head in heads}, neck)


class Fusion(nn.Module):
    """From the levels C2 to C5 to one vector an image: (n, ``width``)."""

    def __init__(self, channels: Sequence[int], pyramid: int, reduction: int) -> None:
        super().__init__()
        self.global_attention = Cbam(channels[-1], reduction)
        self.pyramid = Pyramid(channels, pyramid)
        self.local_attention = Cbam(pyramid, reduction)
        self.local = nn.Sequential(
            nn.Conv2d(pyramid, pyramid, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(pyramid), nn.ReLU()
        )
        self.width = channels[-1] + pyramid * len(channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        levels = list(features)[-len(REDUCTIONS) :]
        whole = self.global_attention(levels[-1]).mean(dim=(2, 3))
        finest, *coarser = self.pyramid(levels)
        local = self.local(self.local_attention(finest)).amax(dim=(2, 3))
        return torch.cat([whole, local, *(level.mean(dim=(2, 3)) for level in coarser)], dim=1)


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017, arXiv 1612.03144): every level gets the meaning of the deeper ones.

    Takes maps from fine to coarse and gives as many, all with the same channels.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channel, width, kernel_size=1) for channel in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        merged = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            above = F.interpolate(merged[finer + 1], size=merged[finer].shape[-2:], mode="nearest")
            merged[finer] = merged[finer] + above
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]

"""CBAM: attention over channels, then over places (Woo et al. 2018, arXiv 1807.06521)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cbam(nn.Module):
    """Weighs a map (n, c, h, w) by channel and then by place; the shape stays.

    Channel weights: one hidden layer of c / ``reduction``, shared by the average and the maximum over places, which
    are added before the sigmoid. Place weights: a 7 x 7 convolution over the average and the maximum over channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.shrink = nn.Conv2d(channels, hidden, kernel_size=1)
        self.widen = nn.Conv2d(hidden, channels, kernel_size=1)
        self.place = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, maps: Tensor) -> Tensor:
        average = self._channel(maps.mean(dim=(2, 3), keepdim=True))
        largest = self._channel(maps.amax(dim=(2, 3), keepdim=True))
        maps = maps * torch.sigmoid(average + largest)
        over_channels = torch.cat([maps.mean(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)], dim=1)
        return maps * torch.sigmoid(self.norm(self.place(over_channels)))

    def _channel(self, pooled: Tensor) -> Tensor:
        return self.widen(torch.relu(self.shrink(pooled)))  # type: ignore[no-any-return]

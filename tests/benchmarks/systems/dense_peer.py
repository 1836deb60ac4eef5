"""The fifth system: DenseNet121 with a global and a local path, CBAM, a feature pyramid and fusion; focal loss.

AdamW at 1e-4, a twentieth of it for DenseNet and its normalization, warm-up then plateau, patience 7, 10 epochs,
contrast enhancement. The batch size is not published; 32 is taken. Both sides have a ResNet-10 in the place of
DenseNet121, of which two minutes of a processor see too few epochs.
"""

from __future__ import annotations

import albumentations as A
import timm
import torch
from peers import Outputs, Peer, PeerStage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

WIDTH = 64


class Attention(nn.Module):
    """CBAM (Woo et al. 2018, arXiv 1807.06521): which channels, then where."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Linear(channels, channels // 16), nn.ReLU(), nn.Linear(channels // 16, channels)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        weight = self.channel(features.mean((2, 3))) + self.channel(features.amax((2, 3)))
        features = features * torch.sigmoid(weight)[..., None, None]
        where = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)
        return features * torch.sigmoid(self.spatial(where))


class DualPath(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet10t", pretrained=False, features_only=True, out_indices=(2, 3, 4))
        channels = self.backbone.feature_info.channels()
        self.lateral = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in channels)
        self.attend = nn.ModuleList(Attention(WIDTH) for _ in channels)
        self.globally = Attention(channels[-1])
        self.classifier = nn.Sequential(
            nn.Linear(channels[-1] + WIDTH * len(channels), 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, labels)
        )

    def forward(self, images: Tensor) -> Outputs:
        levels = self.backbone(images)
        merged, pyramid = None, []
        for level, lateral, attend in reversed(list(zip(levels, self.lateral, self.attend, strict=True))):
            here = lateral(level)
            merged = here if merged is None else here + F.interpolate(merged, size=here.shape[2:])
            pyramid.append(attend(merged).amax((2, 3)))
        whole = self.globally(levels[-1]).mean((2, 3))
        return self.classifier(torch.cat([whole, *pyramid], 1)), None


def loss(outputs: Outputs, targets: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    return sigmoid_focal_loss(outputs[0], targets.nan_to_num(), alpha=0.25, gamma=2.0, reduction="mean")


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    old = list(network.backbone.parameters())
    inside = {id(parameter) for parameter in old}
    new = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    return torch.optim.AdamW([{"params": old, "lr": 1e-4 / 20}, {"params": new, "lr": 1e-4}])


def warmed(optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=max(1, epochs // 10))


PEER = Peer(
    network=lambda labels, size: DualPath(labels),
    augment=lambda: A.Compose([A.HorizontalFlip(p=0.5), A.Rotate(limit=(-10, 10), p=0.5)]),
    loss=loss,
    stages=(PeerStage(10, optimizer, warmed, patience=7),),
    batch_size=32,
)

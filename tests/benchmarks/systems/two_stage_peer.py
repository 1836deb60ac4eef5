"""The third system: a timm network in two stages, its head first, then everything at two learning rates.

Stage 1: 5 epochs, Adam at a constant 1e-4, backbone frozen. Stage 2: 15 epochs, AdamW, 3e-5 for the head and 5e-6 for
the backbone, weight decay 0.01, cosine to 1e-7, patience 5. Label smoothing 0.1. Head: LayerNorm, dropout, 128, 5.
"""

from __future__ import annotations

import albumentations as A
import timm
import torch
from peers import Outputs, Peer, PeerStage
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.backbone = timm.create_model("regnety_002", pretrained=False, num_classes=0)
        width = self.backbone.num_features
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Dropout(0.3), nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(128, labels),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Outputs:
        return self.head(self.backbone(images)), None


def loss(outputs: Outputs, targets: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(outputs[0], targets.argmax(1), label_smoothing=0.1)


def head_alone(network: nn.Module) -> torch.optim.Optimizer:
    network.backbone.requires_grad_(False)
    return torch.optim.Adam(network.head.parameters(), lr=1e-4)


def everything(network: nn.Module) -> torch.optim.Optimizer:
    network.backbone.requires_grad_(True)
    groups = [{"params": network.backbone.parameters(), "lr": 5e-6}, {"params": network.head.parameters(), "lr": 3e-5}]
    return torch.optim.AdamW(groups, weight_decay=0.01)


def cosine(optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=1e-7)


PEER = Peer(
    network=lambda labels, size: Classifier(labels),
    augment=lambda: A.Compose([A.HorizontalFlip(p=0.5), A.Rotate(limit=(-10, 10), p=0.5)]),
    loss=loss,
    stages=(PeerStage(5, head_alone), PeerStage(15, everything, cosine, patience=5)),
    batch_size=32,
)

"""The second system: ResNet with a head of 512, a weighted sampler and class weights, 1e-4 and 1e-5 for the backbone.

AdamW, cosine, clipping, patience 10, dropout 0.5, batches of 32, 50 epochs; albumentations at 0.5 each.
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
        self.backbone = timm.create_model("resnet18", pretrained=False, num_classes=0)
        self.head = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, labels)
        )

    def forward(self, images: Tensor) -> Outputs:
        return self.head(self.backbone(images)), None


def loss(outputs: Outputs, targets: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(outputs[0], targets.argmax(1), weight=weights)


def augment() -> A.Compose:
    return A.Compose(
        [
            A.Rotate(limit=(-15, 15), p=0.5),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(p=0.5),
            A.GaussNoise(std_range=(0.02, 0.05), p=0.25),
            A.GaussianBlur(blur_limit=(3, 5), p=0.25),
            A.CoarseDropout(p=0.25),
        ]
    )


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": network.backbone.parameters(), "lr": 1e-5}, {"params": network.head.parameters(), "lr": 1e-4}]
    return torch.optim.AdamW(groups)


PEER = Peer(
    network=lambda labels, size: Classifier(labels),
    augment=augment,
    loss=loss,
    stages=(PeerStage(50, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR, patience=10),),
    batch_size=32,
    balanced=True,
    clip=1.0,
)

"""The first system: MONAI UNet with a mask head and a label head, Dice + BCE and twice the cross-entropy.

Adam at 1e-4, batches of 16, 100 epochs, flips of half the images, rotation by 10 degrees for 3 in 10, noise of
standard deviation 5 for half. Its noise is added after scaling to 0 to 1 and clipped at 255, which would drown every
image; 5 gray values are meant, and used here. Its text speaks of class weights, its code has none.
"""

from __future__ import annotations

import albumentations as A
import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from peers import Outputs, Peer, PeerStage
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (8, 16, 32, 64, 128)
"""A quarter of the published widths."""
FEATURES = 16


class TwoTasks(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.backbone = UNet(
            spatial_dims=2, in_channels=3, out_channels=FEATURES, channels=CHANNELS, strides=(2,) * 4,
            num_res_units=2, norm="BATCH", dropout=0.1,
        )  # fmt: skip
        self.mask = nn.Sequential(
            nn.Conv2d(FEATURES, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1)
        )
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(FEATURES, 64), nn.ReLU(), nn.BatchNorm1d(64),
            nn.Dropout(0.3), nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32),
            nn.Dropout(0.2), nn.Linear(32, labels),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Outputs:
        features = self.backbone(images)
        return self.classifier(features), self.mask(features)


def loss(outputs: Outputs, targets: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Images without a mask have a mask of zeros, as the published loader makes it."""
    logits, mask = outputs
    dice = DiceLoss(sigmoid=True, squared_pred=True)(mask, masks)
    return dice + F.binary_cross_entropy_with_logits(mask, masks) + 2.0 * F.cross_entropy(logits, targets.argmax(1))


def augment() -> A.Compose:
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Rotate(limit=(-10, 10), p=0.3),
            A.GaussNoise(std_range=(5 / 255, 5 / 255), p=0.5),
        ]
    )


PEER = Peer(
    network=lambda labels, size: TwoTasks(labels),
    augment=augment,
    loss=loss,
    stages=(PeerStage(epochs=100, optimizer=lambda network: torch.optim.Adam(network.parameters(), lr=1e-4)),),
    batch_size=16,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)

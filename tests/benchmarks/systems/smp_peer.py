"""The fourth system: SMP's Unet on a ResNet encoder with a label head on the encoder's last level.

Adam at 1e-4, batches of 16, 50 epochs, Dice + BCE + cross-entropy, plateau, checkpoint on the validation loss.
"""

from __future__ import annotations

import albumentations as A
import segmentation_models_pytorch as smp
import torch
from monai.losses import DiceLoss
from peers import Outputs, Peer, PeerStage
from torch import Tensor, nn
from torch.nn import functional as F


class TwoTasks(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.network = smp.Unet(
            "resnet18", encoder_weights=None, classes=1, aux_params={"classes": labels, "dropout": 0.2}
        )

    def forward(self, images: Tensor) -> Outputs:
        mask, logits = self.network(images)
        return logits, mask


def loss(outputs: Outputs, targets: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    logits, mask = outputs
    overlap = DiceLoss(sigmoid=True)(mask, masks) + F.binary_cross_entropy_with_logits(mask, masks)
    return overlap + F.cross_entropy(logits, targets.argmax(1))


def plateau(optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)


PEER = Peer(
    network=lambda labels, size: TwoTasks(labels),
    augment=lambda: A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.Rotate(limit=(-30, 30), p=0.5)]),
    loss=loss,
    stages=(PeerStage(50, lambda network: torch.optim.Adam(network.parameters(), lr=1e-4), plateau),),
    batch_size=16,
)

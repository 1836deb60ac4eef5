"""How the five published systems train, re-implemented from their descriptions: a loader that decodes files, a loop.

Each is told apart by its ``Peer`` (in the modules beside): network, augmentation, loss, stages. What their
descriptions get plainly wrong is taken as meant, and said where it is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from material import Material
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from medflow.metrics import overlap
from medflow.records import Manifest, Predictions

Outputs = tuple[Tensor, Tensor | None]
"""Label logits (n, labels), and mask logits (n, 1, size, size) where the system has a mask."""


@dataclass(frozen=True)
class PeerStage:
    epochs: int
    """As published; scaled to the time that there is."""
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    """Also freezes what the stage freezes."""
    scheduler: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler] | None = None
    patience: int = 0


@dataclass(frozen=True)
class Peer:
    network: Callable[[int, int], nn.Module]
    """(labels, size) → a module with ``Outputs``."""
    augment: Callable[[], Callable]
    """An albumentations pipeline over float32 images in 0 to 1."""
    loss: Callable[[Outputs, Tensor, Tensor, Tensor], Tensor]
    """(outputs, targets, masks, class weights) → scalar."""
    stages: tuple[PeerStage, ...]
    batch_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    balanced: bool = False
    """Whether rows are drawn by inverse class frequency."""
    clip: float = 0.0


class Files(Dataset):
    """Rows read from their files, each time anew, as the seeds' loaders do."""

    def __init__(self, material: Material, rows: Manifest, peer: Peer, size: int, *, training: bool) -> None:
        self.root, self.size = material.root, size
        self.paths, self.masks = rows.column("path"), rows.column("mask_path")
        self.targets = torch.from_numpy(rows.targets(material.label_head))
        self.augment = peer.augment() if training else None
        self.mean = np.array(peer.mean, dtype=np.float32)
        self.std = np.array(peer.std, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image = np.asarray(Image.open(self.root / self.paths[index]).convert("RGB"))
        image = cv2.resize(image, (self.size, self.size)).astype(np.float32) / 255.0
        mask = self._mask(index)
        if self.augment is not None:
            made = self.augment(image=image, mask=mask)
            image, mask = made["image"], made["mask"]
        image = (np.clip(image, 0.0, 1.0) - self.mean) / self.std
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), self.targets[index], torch.from_numpy(mask)[None]

    def _mask(self, index: int) -> np.ndarray:
        if self.masks[index] is None:
            return np.zeros((self.size, self.size), dtype=np.float32)
        mask = np.asarray(Image.open(self.root / self.masks[index]).convert("L"))
        return cv2.resize((mask > 127).astype(np.float32), (self.size, self.size), interpolation=cv2.INTER_NEAREST)


def learn(
    material: Material, peer: Peer, size: int, seconds: float, seed: int, rates: float
) -> tuple[Predictions, float, float]:
    """Predictions on the test rows, the seconds that training took, and those of them spent computing.

    ``rates`` multiplies every learning rate of the published recipe.
    """
    loaders = _loaders(material, peer, size, seed)
    weights = _class_weights(material)
    planned = []
    for stage in peer.stages:
        torch.manual_seed(seed)
        planned.append(_epoch_seconds(peer, stage, size, loaders, weights, material))
    share = seconds / sum(stage.epochs * each for stage, each in zip(peer.stages, planned, strict=True))
    torch.manual_seed(seed)
    network = peer.network(len(material.label_head.labels), size)
    start, computed = time.monotonic(), time.process_time()
    for stage in peer.stages:
        _run_stage(network, peer, stage, max(1, math.floor(stage.epochs * share)), loaders, weights, rates)
    took, computed = time.monotonic() - start, time.process_time() - computed
    return _predictions(network, material, peer, size), took, computed


def _loaders(material: Material, peer: Peer, size: int, seed: int) -> tuple[DataLoader, DataLoader]:
    """Without worker processes: a side has one core."""
    train = Files(material, material.parts.train, peer, size, training=True)
    val = Files(material, material.parts.val, peer, size, training=False)
    generator = torch.Generator().manual_seed(seed)
    sampler = None
    if peer.balanced:
        each = _class_weights(material)[train.targets.nan_to_num().argmax(dim=1)].double()
        sampler = WeightedRandomSampler(each.tolist(), len(train), generator=generator)
    return (
        DataLoader(
            train,
            peer.batch_size,
            shuffle=sampler is None,
            sampler=sampler,
            drop_last=True,
            generator=generator,
        ),
        DataLoader(val, peer.batch_size),
    )


def _class_weights(material: Material) -> Tensor:
    """Inverse frequency of each label's positives among the training rows, mean 1."""
    counts = np.nansum(material.parts.train.targets(material.label_head), axis=0)
    weights = 1.0 / np.maximum(counts, 1.0)
    return torch.from_numpy(weights / weights.mean()).float()


def _epoch_seconds(peer: Peer, stage: PeerStage, size: int, loaders, weights: Tensor, material: Material) -> float:
    """Processor time, which on a core of one's own is wall time and which no other work stretches."""
    network = peer.network(len(material.label_head.labels), size)
    _run_stage(network, peer, stage, 1, loaders, weights)
    start = time.process_time()
    _run_stage(network, peer, stage, 1, loaders, weights)
    return time.process_time() - start


def _run_stage(
    network: nn.Module, peer: Peer, stage: PeerStage, epochs: int, loaders, weights: Tensor, rates: float = 1.0
) -> None:
    """Train, and leave the weights of the best validation loss."""
    optimizer = stage.optimizer(network)
    for group in optimizer.param_groups:
        group["lr"] *= rates
    scheduler = stage.scheduler(optimizer, epochs) if stage.scheduler else None
    best, kept, waited = math.inf, network.state_dict(), 0
    for _ in range(epochs):
        network.train()
        for images, targets, masks in loaders[0]:
            loss = peer.loss(network(images), targets, masks, weights)
            optimizer.zero_grad()
            loss.backward()
            if peer.clip:
                nn.utils.clip_grad_norm_(network.parameters(), peer.clip)
            optimizer.step()
        value = _validate(network, peer, loaders[1], weights)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(value)
        elif scheduler is not None:
            scheduler.step()
        waited = 0 if value < best else waited + 1
        if value < best:
            best, kept = value, {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if 0 < stage.patience <= waited:
            break
    network.load_state_dict(kept)


@torch.no_grad()
def _validate(network: nn.Module, peer: Peer, loader: DataLoader, weights: Tensor) -> float:
    network.eval()
    sums = [float(peer.loss(network(x), y, masks, weights)) * len(x) for x, y, masks in loader]
    return sum(sums) / len(loader.dataset)


@torch.no_grad()
def _predictions(network: nn.Module, material: Material, peer: Peer, size: int) -> Predictions:
    """What the network says of the test rows; masks are judged against the same stored masks as medflow's."""
    rows, head = material.parts.test, material.label_head
    network.eval()
    said, masks = [], []
    for images, _, _ in DataLoader(Files(material, rows, peer, size, training=False), peer.batch_size):
        logits, mask = network(images)
        said.append(torch.softmax(logits, 1) if head.kind == "exclusive" else torch.sigmoid(logits))
        masks.append(None if mask is None else (mask[:, 0] >= 0).numpy())
    mask_scores = {}
    if material.mask_head is not None:
        scores = overlap(np.concatenate(masks), material.masks(rows, size)).astype(np.float32)
        scores[~rows.has_mask()] = np.nan
        mask_scores[material.mask_head.name] = scores
    return Predictions(
        bundle_digest="peer",
        rows_digest=rows.digest(),
        heads=material.heads,
        image_id=rows.column("image_id"),
        group=rows.column("group"),
        probabilities={head.name: torch.cat(said).numpy()},
        targets={head.name: rows.targets(head)},
        mask_scores=mask_scores,
    )

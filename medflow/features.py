"""What a frozen backbone makes of every image, computed once for a stage instead of once an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medflow.augment import changes_anything
from medflow.config.sections import TrainConfig
from medflow.device import Machine
from medflow.loader import Batch, Examples, in_order, plain_batches
from medflow.mixing import mixes
from medflow.models import Network
from medflow.progress import say
from medflow.schedule import is_still


class Rest(nn.Module):
    """A network from its backbone's output on."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, *tokens: Tensor) -> Mapping[str, Tensor]:
        return self.network.logits(features, *tokens)


def may_remember(network: Network, config: TrainConfig) -> bool:
    """Whether the backbone gives the same for an image in every epoch: it is frozen, and images are as stored."""
    plain = not changes_anything(config.augment) and not mixes(config.mixing)
    return config.feature_cache_mb > 0 and plain and is_still(network)


@torch.no_grad()
def remembered(
    network: Network, parts: Sequence[Examples], machine: Machine, config: TrainConfig, size: int
) -> list[Examples] | None:
    """The examples of each part with features for images, ``size`` images at a time; None where they do not fit.

    Several ranks share the work. Features lie in memory, at most ``config.feature_cache_mb``; a backbone that gives
    several maps instead of one tensor is not remembered.
    """
    network.eval()
    probe = _features(network, machine, parts[0].batch(np.zeros(1, np.int64)))
    if not isinstance(probe, Tensor):
        return None
    images = sum(map(len, parts))
    if probe[0].numel() * 4 * images > config.feature_cache_mb << 20:
        return None
    tables = []
    for examples in parts:
        table = torch.zeros(len(examples), *probe.shape[1:])
        todo = in_order(examples, size)[machine.rank :: machine.ranks]
        for rows, batch in zip(todo, plain_batches(examples, todo, workers=machine.workers), strict=True):
            table[torch.from_numpy(rows)] = _features(network, machine, batch).float().cpu()
        tables.append(torch.from_numpy(machine.merged(table.numpy())))
    if machine.leads:
        say(f"the backbone is frozen: features of {images} images are kept, {sum(t.nbytes for t in tables) >> 20} MiB")
    return [examples.with_features(table) for examples, table in zip(parts, tables, strict=True)]


def _features(network: Network, machine: Machine, batch: Batch) -> Any:
    with machine.fabric.autocast():
        return network.features(batch.to(machine.device).images)

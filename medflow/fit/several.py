"""A training in a process a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from medflow import ranks
from medflow.checkpoint import Checkpoints
from medflow.config.sections import TrainConfig
from medflow.fit.data import Data
from medflow.fit.loop import train_here
from medflow.memory import halved
from medflow.models import Network
from medflow.records import TrainingLog
from medflow.tracking import Tracker


def train_on_ranks(
    network: Network, data: Data, config: TrainConfig, tracker: Tracker, checkpoints: Checkpoints
) -> tuple[Mapping[str, Tensor], TrainingLog]:
    """``train_here`` in a process a device. Where memory runs out in one, all begin again with half the batch."""
    halvings = 0
    while True:
        given = (ranks.pack(network), data, config, checkpoints.training, halvings)
        try:
            log, best = ranks.run(_rank, given, config.devices, {"tracker": tracker, "files": checkpoints.files})
            return load_tensors(best), log
        except ranks.OutOfMemory:
            halvings = halved(config, halvings)


def _rank(
    packed: ranks.Packed, data: Data, config: TrainConfig, training: str, halvings: int, *, tracker: Any, files: Any
) -> tuple[TrainingLog, bytes]:
    """What one rank does."""
    best, log = train_here(ranks.unpack(packed), data, config, tracker, Checkpoints(files, training), halvings)
    return log, save_tensors(dict(best))

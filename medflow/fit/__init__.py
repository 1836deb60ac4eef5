"""The training loop, which ``train`` runs on a new network and ``prune`` on a pruned one.

Read ``fit`` here, then ``loop``: its functions and methods stand in the order in which they run. Lightning Fabric
brings device, precision, backward and clipping; what is not the loop is in the modules that ``loop`` imports.

Killed at any moment and run again with the same arguments, it takes up the newest checkpoint and ends with the same
weights, bit for bit, on a CPU with the same number of devices and the same torch. Another number of threads would add
up in another order, so it goes on with that of the checkpoint, whatever the machine has. No generator's state is
stored for that: order, augmentation, mixing and dropout are drawn from (seed, stage, epoch, step).

On several devices, of one machine or of several (``nodes``), every rank runs this loop. All walk the same plan and take
their share of each forward pass; losses are divided by the whole step's known terms, so the sum of the ranks'
gradients is that of one process. The first rank alone writes and tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from medflow.checkpoint import Checkpoints
from medflow.config.sections import TrainConfig
from medflow.device import check_devices
from medflow.fit.data import Data
from medflow.fit.loop import train_here
from medflow.fit.several import train_on_ranks
from medflow.models import Network
from medflow.records import TrainingLog
from medflow.tracking import Tracker

__all__ = ["Data", "Learn", "fit", "settle"]


class Learn(Protocol):
    """What trains a network: ``fit``, or something that does the same elsewhere."""

    def __call__(
        self, network: Network, data: Data, config: TrainConfig, *, tracker: Tracker, checkpoints: Checkpoints
    ) -> TrainingLog:
        """As ``fit``."""
        ...


def fit(
    network: Network, data: Data, config: TrainConfig, *, tracker: Tracker, checkpoints: Checkpoints
) -> TrainingLog:
    """Train ``network`` in place, through all stages, and leave in it the weights that were best on ``data.val``.

    On return it is on the CPU, in evaluation mode. Raises TrainingError where the loss is not finite, memory does not
    hold one image or a rank died, ConfigError where the config cannot be meant for these heads or this machine.
    """
    check_devices(config)
    if config.devices == 1:
        best, log = train_here(network, data, config, tracker, checkpoints)
    else:
        best, log = train_on_ranks(network, data, config, tracker, checkpoints)
    settle(network, best)
    return log


def settle(network: Network, best: Mapping[str, Tensor]) -> None:
    """Leave the weights in the network, on the CPU, in evaluation mode."""
    network.load_state_dict(best)
    network.cpu().eval().requires_grad_(True)

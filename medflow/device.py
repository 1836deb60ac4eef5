"""The machine under a training: device, precision, one process or several, and torch's settings while it lasts."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medflow.config.sections import TrainConfig
from medflow.errors import ConfigError, TrainingError
from medflow.pool import cores
from medflow.progress import say

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
#: A rank that waits longer for the others gives up; the slowest wait is for a checkpoint on its way to a store.
PATIENCE: Final = timedelta(minutes=10)
#: More would wait for Python's lock: of an augmentation, only the work on pixels runs beside that of other threads.
MOST_THREADS: Final = 8


class Machine:
    """Fabric on the devices of one training, and this process's place among them: ``rank`` of ``ranks``."""

    def __init__(self, config: TrainConfig, nodes: int = 1) -> None:
        """``nodes`` machines share the devices evenly. Raises ConfigError for devices that are not there."""
        accelerator = _accelerator(config)
        self.precision: Precision = _precision(config, accelerator)
        self.ranks = config.devices
        here = config.devices // nodes
        self.fabric = _fabric(accelerator, self.precision, here, nodes)
        self.rank = self.fabric.global_rank
        free = loading_threads(accelerator, cores(), here)
        self.workers = free if config.workers is None else config.workers

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def threads(self) -> int:
        """How many threads compute in this process on a CPU, and so in which order sums add up; 0 on a GPU."""
        return torch.get_num_threads() if self.device.type == "cpu" else 0

    def compute_with(self, threads: int) -> None:
        """As a training began, whatever this machine has: another number of threads would give other weights."""
        here = self.threads
        if not here or not threads or here == threads:
            return
        torch.set_num_threads(threads)
        if self.leads:
            say(f"threads: {threads}, with which the training began (this machine would take {here})")

    def __str__(self) -> str:
        threads = f" with {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        processes = f", {self.ranks} processes" if self.ranks > 1 else ""
        return f"on {self.device}{threads}{processes}"

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def added(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same in each."""
        if self.ranks == 1:
            return tensor
        return torch.as_tensor(self.fabric.all_reduce(tensor.to(self.device), reduce_op="sum"))

    def merged(self, array: np.ndarray) -> np.ndarray:
        """One array from all ranks, each of which has filled its own places and left 0 in the others."""
        return array if self.ranks == 1 else self.added(torch.from_numpy(array)).cpu().numpy()

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the first one's buffers: batch norm's statistics differ where it is not synchronized."""
        if self.ranks > 1:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def synchronized(self, network: nn.Module) -> None:
        """On several GPUs, let batch norm see the whole batch, in place. gloo cannot: on CPUs it sees its share."""
        if self.ranks == 1 or self.device.type != "cuda":
            return
        # timm's, since torch's would lose the activation inside timm's own batch norm.
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(network)


def _fabric(accelerator: str, precision: Precision, devices: int, nodes: int) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    if devices * nodes == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    # An encoder may have layers whose output no head reads.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=PATIENCE)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its banner
    # `medflow.ranks` starts the processes, or torchrun on each node, whatever scheduler this machine has.
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy,
        plugins=[LightningEnvironment()],
    )  # fmt: skip
    fabric.launch()
    return fabric


def loading_threads(accelerator: Literal["cpu", "cuda"], cores: int, ranks: int) -> int:
    """How many threads prepare batches in each of ``ranks`` processes on a machine where nobody says how many.

    A GPU leaves the cores free but for the one that drives it. On a CPU the network takes every core, and threads
    beside it would only take them away.
    """
    return max(1, min(MOST_THREADS, cores // ranks - 1)) if accelerator == "cuda" else 0


def check_devices(config: TrainConfig, nodes: int = 1) -> None:
    """Raises ConfigError where this machine, one of ``nodes``, has not its share of the devices that are asked for."""
    there = torch.cuda.device_count() if _accelerator(config) == "cuda" else os.cpu_count() or 1
    if config.devices > there * nodes:
        each = "this machine" if nodes == 1 else f"each of {nodes} nodes"
        raise ConfigError(
            f"train.devices is {config.devices}, and {each} has {there}", hint=f"set train.devices={there * nodes}"
        )
    check_shares(config)


def check_shares(config: TrainConfig) -> None:
    """Raises ConfigError where a batch is too small to be shared."""
    if config.batch_size is not None and config.batch_size < config.devices:
        raise ConfigError(
            f"a batch of {config.batch_size} images cannot be shared among {config.devices} devices",
            hint="raise train.batch_size, or lower train.devices",
        )


def _accelerator(config: TrainConfig) -> Literal["cpu", "cuda"]:
    cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        raise ConfigError("train.accelerator is cuda, and torch sees no GPU here", hint="set train.accelerator=auto")
    return "cuda" if cuda and config.accelerator != "cpu" else "cpu"


def _precision(config: TrainConfig, accelerator: str) -> Precision:
    if config.precision != "auto":
        return config.precision
    if accelerator == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


@contextmanager
def reproducible() -> Iterator[None]:
    """Deterministic kernels where torch has them; the caller's generators and settings come back afterwards.

    The number of threads is such a setting: a training that goes on takes that of its checkpoint.
    """
    deterministic: Any = torch.utils.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when first used
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, threads = deterministic.fill_uninitialized_memory, torch.get_num_threads()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # a memset of every tensor, for debugging
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)
            deterministic.fill_uninitialized_memory = filled
            torch.set_num_threads(threads)


@contextmanager
def explained() -> Iterator[None]:
    """torch's error that a user can mend by a setting, in medflow's words."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "batch norm cannot learn from a batch of one image",
            hint="set train.batch_size to 2 or more for each device",
        ) from error

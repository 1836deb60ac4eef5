"""What a training does where memory is short: fewer images at once, or activations computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from medflow.config.sections import TrainConfig
from medflow.device import Machine
from medflow.errors import ModelError, TrainingError
from medflow.models import Network
from medflow.progress import say


def halved(config: TrainConfig, halvings: int) -> int:
    """One halving more of what goes through the network at once. Raises TrainingError where that is one image."""
    share = (config.batch_size or 1) // config.devices
    if share >> halvings <= 1:
        raise TrainingError(
            "memory does not hold a batch of one image",
            hint="take a smaller model.size or a smaller model, or set train.gradient_checkpointing=true",
        )
    say(f"memory does not hold {share >> halvings} images at once: each batch goes in {2 ** (halvings + 1)} parts now")
    return halvings + 1


@contextmanager
def undone(network: nn.Module) -> Iterator[None]:
    """Where memory runs out within, the network's buffers are what they were before.

    A forward pass moves batch norm's running statistics layer by layer, and the pass that failed is made again.
    """
    before = [buffer.detach().clone() for buffer in network.buffers()]
    try:
        yield
    except torch.OutOfMemoryError:
        for buffer, was in zip(network.buffers(), before, strict=True):
            buffer.copy_(was)
        raise


def notes(network: nn.Module, config: TrainConfig, machine: Machine, halvings: int) -> tuple[str, ...]:
    """What a reader of the card must know of how a batch was cut up."""
    found = []
    if halvings:
        found.append(f"memory did not hold batches of {config.batch_size}: they went in {2**halvings} parts")
    normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    if machine.ranks > 1 and machine.device.type == "cpu" and normalized:
        found.append(f"batch norm saw each of {machine.ranks} processes' share of a batch by itself")
    return tuple(found)


@runtime_checkable
class _Recomputing(Protocol):
    """A module that can let go of its activations, as timm's networks can."""

    def set_grad_checkpointing(self, enable: bool = True) -> None: ...


@contextmanager
def recomputed(network: Network, config: TrainConfig) -> Iterator[None]:
    """With ``config.gradient_checkpointing``, the backbone computes its activations anew in the backward pass.

    Chen et al. 2016, arXiv 1604.06174. Dropout is the same both times; batch norm's running statistics move twice a
    step. Raises ModelError for a backbone that cannot: SMP's own encoders and MONAI's UNet.
    """
    if not config.gradient_checkpointing:
        yield
        return
    able = [module for module in network.backbone.modules() if isinstance(module, _Recomputing)]
    if not able:
        raise _cannot(network)
    try:
        for module in able:
            module.set_grad_checkpointing(True)
    except AssertionError as error:
        raise _cannot(network) from error
    try:
        yield
    finally:
        for module in able:
            module.set_grad_checkpointing(False)


def _cannot(network: Network) -> ModelError:
    return ModelError(
        f"the backbone {type(network.backbone).__name__} cannot compute its activations twice",
        hint="set train.gradient_checkpointing=false, or take a timm model, most of which can",
    )

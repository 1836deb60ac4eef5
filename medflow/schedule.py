"""What a stage trains, and how fast: pure functions of a stage and a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from medflow.blocks import blocks, norms
from medflow.config.sections import Stage
from medflow.errors import ConfigError
from medflow.models import Network


def lr_at(stage: Stage, step: int, steps: int, *, base: float | None = None, reductions: int = 0) -> float:
    """The learning rate of optimiser step ``step`` (from 0) of ``steps`` in a stage.

    Linear warm-up over the first ``stage.warmup`` of the steps, whose last has the full rate; then constant, or half
    a cosine that would reach ``lr_min`` after the last step (Loshchilov & Hutter 2017, arXiv 1608.03983), or
    constant until a plateau has lowered it ``reductions`` times. ``base`` is the full rate, ``stage.lr`` if None.
    """
    base = stage.lr if base is None else base
    warm = math.ceil(stage.warmup * steps)
    # A rate that is below the floor from the start stays where it is.
    floor = min(base, stage.lr_min)
    if stage.schedule == "plateau":
        base = max(floor, base * stage.plateau_factor**reductions)
    if step < warm:
        return base * (step + 1) / warm
    if stage.schedule != "cosine":
        return base
    done = (step - warm) / (steps - warm)
    return floor + (base - floor) * 0.5 * (1.0 + math.cos(math.pi * done))


def freeze(network: Network, stage: Stage) -> None:
    """Let gradients flow where the stage trains, and nowhere else.

    Raises ConfigError where more blocks shall learn than the backbone has (``medflow.blocks`` says what a block is).
    """
    for parameter in network.parameters_of("backbone"):
        parameter.requires_grad_(stage.freeze == "none")
    for parameter in network.parameters_of("head"):
        parameter.requires_grad_(True)
    if not stage.unfreeze_blocks:
        return
    found = blocks(network.backbone)
    if stage.unfreeze_blocks > len(found):
        raise ConfigError(
            f"train.unfreeze_blocks is {stage.unfreeze_blocks}, and this backbone has {len(found)} blocks",
            hint=f"set it to {len(found)} at most, or freeze=none",
        )
    for parameter in [item for block in found[-stage.unfreeze_blocks :] for item in block]:
        parameter.requires_grad_(True)


def is_still(network: Network) -> bool:
    """Whether nothing in the backbone learns, so that its output for an image never changes."""
    return not any(parameter.requires_grad for parameter in network.parameters_of("backbone"))


def training_mode(network: Network, stage: Stage) -> None:
    """Training mode, with what is frozen kept in evaluation mode, lest batch norm's statistics drift."""
    network.train()
    if stage.freeze == "backbone":
        for part in (network.backbone, *network.paced):
            part.eval()
            _wake(part)


def _wake(module: nn.Module) -> None:
    """Training mode for the outermost modules all of whose parameters learn."""
    parameters = list(module.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        module.train()
        return
    for child in module.children():
        _wake(child)


def make_optimizer(network: Network, stage: Stage, *, fused: bool) -> torch.optim.Optimizer:
    """The stage's optimiser over what is not frozen. Biases and norms, of one dimension, are not decayed.

    Each group knows its full rate as ``base``, for ``lr_at``.
    """
    groups = _groups(network, stage)
    match stage.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=stage.lr, fused=fused)
        case "adam":
            return torch.optim.Adam(groups, lr=stage.lr, fused=fused)
        case "sgd":
            nesterov = stage.nesterov
            return torch.optim.SGD(groups, lr=stage.lr, momentum=stage.momentum, nesterov=nesterov, fused=fused)


def _groups(network: Network, stage: Stage) -> list[dict[str, Any]]:
    """Parameters by whether they are decayed and by full rate, in the network's order."""
    backbone, normalizing = _ids(network.parameters_of("backbone")), _ids(norms(network))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for parameter in (item for item in trained if (item.ndim > 1) == decayed):
            part = stage.lr_backbone if id(parameter) in backbone else None
            special = stage.lr_norm if id(parameter) in normalizing else None
            base = next((rate for rate in (special, part) if rate is not None), stage.lr)
            groups.setdefault((decayed, base), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": stage.weight_decay if decayed else 0.0, "base": base}
        for (decayed, base), parameters in groups.items()
    ]


def _ids(parameters: Iterable[nn.Parameter]) -> frozenset[int]:
    return frozenset(map(id, parameters))

"""What a stage trains, and how fast: pure functions of a stage and a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from medflow.config.sections import Stage
from medflow.models import Network


def lr_at(stage: Stage, step: int, steps: int) -> float:
    """The learning rate of optimiser step ``step`` (from 0) of ``steps`` in a stage.

    Linear warm-up over the first ``stage.warmup`` of the steps, whose last has the full rate; then constant,
    or half a cosine that would reach ``lr_min`` after the last step (Loshchilov & Hutter 2017, arXiv 1608.03983).
    """
    warm = math.ceil(stage.warmup * steps)
    if step < warm:
        return stage.lr * (step + 1) / warm
    if stage.schedule == "constant":
        return stage.lr
    done = (step - warm) / (steps - warm)
    return stage.lr_min + (stage.lr - stage.lr_min) * 0.5 * (1.0 + math.cos(math.pi * done))


def freeze(network: Network, stage: Stage) -> None:
    """Let gradients flow where the stage trains, and nowhere else."""
    for parameter in network.parameters_of("backbone"):
        parameter.requires_grad_(stage.freeze == "none")
    for parameter in network.parameters_of("head"):
        parameter.requires_grad_(True)


def training_mode(network: Network, stage: Stage) -> None:
    """Training mode, with a frozen backbone kept in evaluation mode, lest batch norm's statistics drift."""
    network.train()
    if stage.freeze == "backbone":
        network.backbone.eval()


def make_optimizer(network: nn.Module, stage: Stage, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over what is not frozen. Biases and norms, of one dimension, are not decayed."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.lr, fused=fused)

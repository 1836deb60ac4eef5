"""A moving average of a network's weights, which often generalizes better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """average ← d · average + (1 − d) · weights, after each optimiser step (Polyak & Juditsky 1992).

    d is ``decay``, and (1 + step) / (10 + step) in the first steps of a stage, as in TensorFlow's
    ``ExponentialMovingAverage``, so that a short stage is not all beginning. The statistics of batch norm are averaged
    like weights; whole numbers, such as its count of batches, are those of now.
    """

    def __init__(self, network: nn.Module, decay: float, tensors: Mapping[str, Tensor]) -> None:
        """``tensors`` are those of a checkpoint; empty begins with the network's."""
        self._network = network
        self._decay = decay
        current = network.state_dict()
        self.tensors = {
            name: (tensors.get(name, value)).detach().to(value.device, copy=True) for name, value in current.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after step ``step`` (from 0) of a stage."""
        share = 1.0 - min(self._decay, (1.0 + step) / (10.0 + step))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For a while, the network has the averaged weights."""
        own = {name: value.detach().clone() for name, value in self._network.state_dict().items()}
        self._network.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self._network.load_state_dict(own)

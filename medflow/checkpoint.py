"""Where training stands, as one file that proves itself, in any store.

A checkpoint is a safetensors file whose header carries the rest as JSON; nothing is pickled. Its name is
``<training>-<stage>-<epoch>-<step>-<sha256 of its bytes>``: the newest name whose bytes have that digest is where
to go on. So no second file has to agree with it, and a copy cut short at any byte is seen and the one before is
taken: the newest two are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from medflow.progress import say
from medflow.records import EpochLog, Record
from medflow.tracking import Files

KEPT = 2


class Position(Record):
    """All of a checkpoint that is no tensor: where training is, and what it has seen."""

    stage: int = 0
    epoch: int = 0
    """Epochs done in this stage."""
    step: int = 0
    """Optimiser steps done in this epoch."""
    loss_sum: float = 0.0
    """Training loss of this epoch so far, times images."""
    images: int = 0
    """Images of this epoch so far."""
    tally: tuple[float, ...] = ()
    """``fit.tally.Tally``'s vector of this epoch so far; empty at its beginning."""
    seconds: float = 0.0
    """Of this epoch so far."""
    lr: float = 0.0
    """Of the step before."""
    log: tuple[EpochLog, ...] = ()
    best_epoch: int = 0
    best_score: float = float("-inf")
    best_stop: float = float("-inf")
    """The best that what says when to stop has been; the best score where it is the same metric."""
    waited: int = 0
    """Epochs of this stage since then."""
    reductions: int = 0
    """How often a plateau has lowered this stage's learning rate."""
    stalled: int = 0
    """Epochs since then without a better score."""
    halvings: int = 0
    """How often memory has halved the batch."""
    threads: int = 0
    """How many threads compute in each process on a CPU; 0 on a GPU."""
    scaler: Mapping[str, int | float] = Field(default_factory=dict)
    """State of the fp16 loss scaler, empty in other precisions."""


@dataclass(frozen=True)
class Checkpoint:
    position: Position
    model: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    """Weights of the best epoch so far; empty before the first."""
    optimizer: Mapping[str, Tensor]
    """``<parameter's index>.<name>``."""
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights; empty where there is none."""


class Checkpoints:
    """The checkpoints of one training in a store. ``training`` is a digest of all that determines it."""

    def __init__(self, files: Files, training: str) -> None:
        self._files = files
        self._prefix = training[:16]

    @property
    def training(self) -> str:
        """What distinguishes this training's names in the store."""
        return self._prefix

    @property
    def files(self) -> Files:
        return self._files

    def save(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint, then drop those before the newest two."""
        data = encode(checkpoint)
        at = checkpoint.position
        self._files.write(f"{self._prefix}-{at.stage:03d}-{at.epoch:05d}-{at.step:07d}-{_sha(data)}.safetensors", data)
        for name in self._names()[:-KEPT]:
            self._files.remove(name)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. A damaged one is told of, removed, and the one before it taken."""
        for name in reversed(self._names()):
            data = self._files.read(name)
            if data is not None and name.endswith(f"-{_sha(data)}.safetensors"):
                return decode(data)
            say(f"checkpoint {name} is damaged and is left out; training goes on from the one before it")
            self._files.remove(name)
        return None

    def clear(self) -> None:
        for name in self._names():
            self._files.remove(name)

    def _names(self) -> list[str]:
        # Zero-padded, so the order of names is the order of training.
        return sorted(name for name in self._files.names() if name.startswith(f"{self._prefix}-"))


def encode(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint; equal checkpoints give equal bytes."""
    parts = {"model": checkpoint.model, "best": checkpoint.best, "optimizer": checkpoint.optimizer}
    parts["average"] = checkpoint.average
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    return save_tensors(tensors, metadata={"position": checkpoint.position.model_dump_json()})


def decode(data: bytes) -> Checkpoint:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "average": {}}
    for key, tensor in load_tensors(data).items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return Checkpoint(position=Position.model_validate_json(header["__metadata__"]["position"]), **parts)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as a checkpoint holds it."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def fill(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Load the state of a checkpoint, ``<parameter's index>.<name>``; none leaves the optimiser new."""
    if not saved:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # In the parameter's strides: the fused kernel walks both in memory order, and files know no channels-last.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

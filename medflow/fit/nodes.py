"""A training on several machines: what goes to their processes, and what comes back, through one folder of a store.

Who asks for it puts down an ``Order`` with the weights to start from (``give``). Each process on each machine takes
part (``take_part``): it builds the network, joins the group that torchrun's environment names, and runs the loop as
one rank. Rows and pixels lie in the store already, and each process reads them there. The first rank keeps
checkpoints in the same folder, and leaves there what a tracker is to be told, and in the end the weights and the log.
Who has asked looks for all of it (``Heard``, ``result``, ``failure``). Nothing here knows of Kubernetes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from medflow import errors, models, ranks
from medflow.checkpoint import Checkpoints
from medflow.config.sections import TrainConfig
from medflow.device import check_devices
from medflow.errors import MedflowError, TrainingError
from medflow.fit.data import Data
from medflow.fit.loop import train_here
from medflow.models import Network
from medflow.records import Manifest, Pixels, Record, Structure, TrainingLog
from medflow.text import Tokenizer
from medflow.tracking import Files, Tracker

#: Before every name, so that the files stand apart from checkpoints.
PREFIX = "nodes-"
ORDER = f"{PREFIX}order.json"
START = f"{PREFIX}start.safetensors"
TOLD = f"{PREFIX}told-"
RESULT = f"{PREFIX}result.safetensors"
FAILURE = f"{PREFIX}failure.json"
MEMORY = "OutOfMemory"


class Order(Record):
    """One training, for processes that have nothing but a store."""

    structure: Structure
    tokenizer: str | None = None
    """The document of a network's tokenizer that reads reports."""
    config: TrainConfig
    training: str
    """What its checkpoints are named by."""
    nodes: int
    halvings: int = 0
    """How often memory has halved the batch."""
    inputs: Mapping[str, str] = Field(default_factory=dict)
    """Where `train`, `val` and `pixels` lie, in words of the store's owner."""


class Told(Record):
    """One call of a tracker."""

    params: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    metrics: Mapping[str, float] = Field(default_factory=dict)
    step: int = 0


class Failure(Record):
    """What a process raised, by the name of its class."""

    kind: str
    message: str = ""
    hint: str = ""


# -- who asks --------------------------------------------------------------------------------------


def give(files: Files, order: Order, network: Network) -> None:
    """Put down an order and the weights that ``network`` starts from, the order last."""
    files.write(START, save_tensors(models.tensors_of(network)))
    files.write(ORDER, order.model_dump_json().encode())


def result(files: Files) -> tuple[Mapping[str, Tensor], TrainingLog] | None:
    """The best weights and the log, or None while there are none."""
    data = files.read(RESULT)
    if data is None:
        return None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load_tensors(data), TrainingLog.model_validate_json(header["__metadata__"]["log"])


def failure(files: Files) -> MedflowError | ranks.OutOfMemory | None:
    """What a process has raised of medflow's errors, or that memory ran out in one; None while none did."""
    data = files.read(FAILURE)
    if data is None:
        return None
    told = Failure.model_validate_json(data)
    if told.kind == MEMORY:
        return ranks.OutOfMemory()
    kind = getattr(errors, told.kind, TrainingError)
    return kind(told.message, hint=told.hint)  # type: ignore[no-any-return]


def clear(files: Files) -> None:
    """Remove all but checkpoints."""
    for name in files.names():
        if name.startswith(PREFIX):
            files.remove(name)


class Heard:
    """Hands on to a tracker what the first rank tells, each call once and in order."""

    def __init__(self, files: Files, tracker: Tracker) -> None:
        self._files, self._tracker = files, tracker
        self._seen: set[str] = set()

    def next(self) -> list[Told]:
        """What was told since the last time."""
        names = [name for name in sorted(self._files.names()) if name.startswith(TOLD) and name not in self._seen]
        told = [Told.model_validate_json(data) for name in names if (data := self._files.read(name)) is not None]
        self._seen.update(names)
        for call in told:
            if call.params:
                self._tracker.params(call.params)
            if call.metrics:
                self._tracker.metrics(call.metrics, call.step)
        return told


# -- in a process of a node ------------------------------------------------------------------------


def order_in(files: Files) -> Order:
    """The order in a folder. Raises TrainingError where there is none."""
    data = files.read(ORDER)
    if data is None:
        raise TrainingError(f"there is no {ORDER} in the store", hint="the step that asks for nodes puts it there")
    return Order.model_validate_json(data)


def take_part(files: Files, order: Order, train: Manifest, val: Manifest, pixels: Pixels) -> None:
    """This process's part of a training; the first rank leaves the result. The environment is torchrun's."""
    check_devices(order.config, order.nodes)
    network = models.rebuild(order.structure)
    network.load_state_dict(load_tensors(files.read(START) or b""))
    structure = order.structure
    tokenizer = None if order.tokenizer is None else Tokenizer(order.tokenizer)
    data = Data(train, val, pixels, structure.heads, structure.preprocess, tokenizer)
    best, log = train_here(
        network, data, order.config, Telling(files), Checkpoints(files, order.training), order.halvings, order.nodes
    )
    if os.environ["RANK"] == "0":
        files.write(RESULT, save_tensors(dict(best), metadata={"log": log.model_dump_json()}))


def tell_failure(files: Files, error: BaseException) -> None:
    """Leave what this process raised; what another has left before stays."""
    if files.read(FAILURE) is not None:
        return
    if isinstance(error, MedflowError):
        told = Failure(kind=type(error).__name__, message=error.message, hint=error.hint)
    else:
        told = Failure(kind=MEMORY)
    files.write(FAILURE, told.model_dump_json().encode())


class Telling:
    """The tracker of a rank: each call becomes a file, in order."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._count = sum(name.startswith(TOLD) for name in files.names())

    def params(self, values: Mapping[str, str | int | float | bool]) -> None:
        self._tell(Told(params=values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._tell(Told(metrics=values, step=step))

    def file(self, path: Path, folder: str) -> None:
        raise NotImplementedError("the loop gives no files to its tracker")

    def model(self, files: Sequence[Path], name: str) -> None:
        raise NotImplementedError("the loop gives no model to its tracker")

    def _tell(self, told: Told) -> None:
        self._files.write(f"{TOLD}{self._count:06d}.json", told.model_dump_json().encode())
        self._count += 1

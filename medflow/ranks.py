"""One piece of work in several processes of this machine, as ranks of one group; the parent keeps what is outside.

Ranks are spawned, not forked: a fork of a process that has used CUDA or OpenMP does not work. They own no tracker and
no store; they ask the parent through a pipe, so that a rank that outlives its parent can write nothing. What a rank
prints comes through a pipe as well: the first rank's lines are shown as they come, and the last lines of a rank that
dies are in the error. A rank whose parent is gone ends itself.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from medflow.errors import MedflowError, ProcessLost

#: Lines of a dead rank's output that its error repeats.
LAST_LINES: Final = 12
#: After the first death, how long to wait for others: the first one seen may only have lost its neighbour.
GRACE_SECONDS: Final = 3.0

Work = Callable[..., Any]
Packed = tuple[nn.Module, bytes]


class OutOfMemory(Exception):
    """Some rank's memory did not hold its share."""


class Asked:
    """What a rank has instead of an object of the parent: each call is made there, and its answer comes back."""

    def __init__(self, control: Connection, service: str) -> None:
        self._control = control
        self._service = service

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._control.send(("call", self._service, method, arguments, named))
            answer, error = self._control.recv()
            if error is not None:
                raise error
            return answer

        return call


def run(work: Work, arguments: tuple[Any, ...], ranks: int, services: Mapping[str, Any]) -> Any:
    """What ``work(*arguments, **services)`` returns in the first of ``ranks`` processes; it runs once in each.

    In a rank, each of ``services`` is an ``Asked``. Raises what a rank raised of medflow's errors, OutOfMemory, and
    ProcessLost with its last lines where a rank died.
    """
    port = _free_port()
    group = [_Rank(rank, ranks, port, work, arguments, tuple(services)) for rank in range(ranks)]
    try:
        return _served(group, services)
    finally:
        for member in group:
            member.end()


class _Rank:
    """The parent's side of one process."""

    def __init__(
        self, rank: int, ranks: int, port: int, work: Work, arguments: tuple[Any, ...], services: tuple[str, ...]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.rank, self.ranks = rank, ranks
        self.control, theirs = context.Pipe()
        self.output, written = context.Pipe(duplex=False)
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self._rest = b""
        place = (rank, ranks, port, max(1, torch.get_num_threads() // ranks))
        self.process: BaseProcess = context.Process(
            target=_enter, args=(place, theirs, written, work, arguments, services), name=f"rank-{rank}", daemon=True
        )
        self.process.start()
        theirs.close()
        written.close()

    def read(self) -> bool:
        """Take in what the rank has printed; False at its end."""
        data = os.read(self.output.fileno(), 65536)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            text = line.decode(errors="replace")
            self.lines.append(text)
            if self.rank == 0:
                sys.stderr.write(f"{text}\n")
        return bool(data)

    def died(self) -> ProcessLost:
        """The error of a rank that ended before its work did."""
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        while wait([self.output], 0) and self.read():
            pass
        last = f"; its last lines:\n{chr(10).join(self.lines)}" if self.lines else ", and had printed nothing"
        return ProcessLost(
            f"process {self.rank + 1} of {self.ranks} {how}{last}",
            hint="run the same command again: training goes on from its newest checkpoint",
        )

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.control.close()
        self.output.close()


def _served(group: list[_Rank], services: Mapping[str, Any]) -> Any:
    """Answer the ranks until the first has done its work."""
    talking: dict[Any, _Rank] = {member.control: member for member in group}
    printing: dict[Any, _Rank] = {member.output: member for member in group}
    living: dict[Any, _Rank] = {member.process.sentinel: member for member in group}
    while True:
        ready: list[Any] = wait([*talking, *printing, *living])
        for end in [item for item in ready if item in printing]:
            if not printing[end].read():
                del printing[end]
        for end in [item for item in ready if item in talking]:
            try:
                message = end.recv()
            except EOFError:
                del talking[end]
                continue
            if message[0] == "done":
                return message[1]
            _answer(end, message, services)
        for end in [item for item in ready if item in living]:
            if living[end].process.exitcode != 0:
                raise _first_to_die(group).died()
            del living[end]


def _answer(control: Connection, message: tuple[Any, ...], services: Mapping[str, Any]) -> None:
    match message:
        case ("call", service, method, arguments, named):
            try:
                control.send((getattr(services[service], method)(*arguments, **named), None))
            except MedflowError as error:
                control.send((None, error))
        case ("error", error):
            raise error
        case ("memory",):
            raise OutOfMemory


def _first_to_die(group: list[_Rank]) -> _Rank:
    """The rank that a signal killed, else the first of those that ended."""
    give_up = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < give_up and any(member.process.is_alive() for member in group):
        wait([member.process.sentinel for member in group if member.process.is_alive()], 0.2)
    dead = [member for member in group if not member.process.is_alive() and member.process.exitcode != 0]
    return min(dead or group, key=lambda member: (member.process.exitcode or 0) >= 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- a network on its way to a rank ----------------------------------------------------------------


def pack(network: nn.Module) -> Packed:
    """A network as its structure, without memory, and the bytes of its tensors.

    As it is, multiprocessing would pass its tensors through shared memory, of which a container has 64 MiB.
    """
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in _tensors(network)
    }
    return copy.deepcopy(network).to("meta"), save(tensors)


def unpack(packed: Packed) -> Any:
    """The network of ``pack``, on the CPU."""
    network, data = packed
    network.to_empty(device="cpu")
    tensors = load(data)
    with torch.no_grad():
        for name, tensor in _tensors(network):
            tensor.copy_(tensors[name])
    return network


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and all buffers, those that are not saved included."""
    return [*network.named_parameters(), *network.named_buffers()]


# -- in a rank -----------------------------------------------------------------------------------


def _enter(
    place: tuple[int, int, int, int],
    control: Connection,
    output: Connection,
    work: Work,
    arguments: tuple[Any, ...],
    services: tuple[str, ...],
) -> None:
    """What a spawned process does: its rank's work, and tell the parent how it went."""
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, ranks, port, threads = place
    os.environ.update(
        {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
         "MASTER_PORT": str(port)}
    )  # fmt: skip
    torch.set_num_threads(threads)
    try:
        answer = work(*arguments, **{name: Asked(control, name) for name in services})
        if rank == 0:
            control.send(("done", answer))
    except torch.OutOfMemoryError:
        control.send(("memory",))
        control.recv()  # until the parent ends this process, lest its end be taken for a death
    except MedflowError as error:
        control.send(("error", error))
        control.recv()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once: other ranks wait for this one, and the group's own end would wait for them


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

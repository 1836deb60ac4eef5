"""Work for the ranks of ``tests/test_ranks.py``: a spawned process imports it by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch

from medflow.errors import ConfigError


def ask(start: int, *, numbers: Any) -> int:
    """The rank adds its own number to what the parent has."""
    return numbers.add(start, by=int(os.environ["LOCAL_RANK"]) + 1)


def refuse(*, numbers: Any) -> None:
    raise ConfigError("this cannot be", hint="do something else")


def fill_memory(*, numbers: Any) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    time.sleep(60)


def die(how: str, *, numbers: Any) -> None:
    """The second rank dies; the first waits for it, as in an all-reduce."""
    if os.environ["LOCAL_RANK"] == "1":
        print("the last words", file=sys.stderr, flush=True)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a rank fell over")
    time.sleep(60)

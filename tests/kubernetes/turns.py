"""Whose turn it is among the processes that share the tests of a cluster, by locks on files of one folder.

Files of tests: those that take servers away go on alone, all others beside each other. Tests: one that is `quiet` is
measured, and goes on while the others hold still between two tests of theirs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: The environment's name for the folder; without one there is one process, which has every turn.
TURNS = "MEDFLOW_TURNS"


@contextmanager
def of_file(*, alone: bool) -> Iterator[None]:
    """Lasts until the file's last test is over."""
    with _locked("files", alone):
        yield


@contextmanager
def of_test(*, quiet: bool) -> Iterator[None]:
    """Files that have quiet tests are for one process, which never waits within them for a turn of the other."""
    with ExitStack() as held:
        # Whoever waits for quiet stands in the door meanwhile, or the others' next tests would go on before it.
        with _locked("door", alone=True):
            held.enter_context(_locked("tests", quiet))
        yield


@contextmanager
def _locked(name: str, alone: bool) -> Iterator[None]:
    folder = os.environ.get(TURNS)
    if folder is None:
        yield
        return
    with (Path(folder) / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield

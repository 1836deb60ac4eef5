"""Processes that end with the one that started them, also where that one is killed and can stop nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

#: From Linux's <sys/prctl.h>.
PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> Callable[[], None] | None:
    """What a new process does before its program begins, as ``preexec_fn`` of ``subprocess.Popen``.

    It asks for a SIGTERM when ``parent`` is gone. Linux counts the thread that starts it as its parent, so it is
    started from a thread that stays. None where the system has no such thing.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded before the fork, where little may be done

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it went before it could be asked for
            os._exit(128 + signal.SIGTERM)

    return ask

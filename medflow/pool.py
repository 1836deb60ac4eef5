"""Worker processes that survive nothing: not their parent, not a signal meant for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2

from medflow.errors import PlatformError

#: A process takes about as long to start as this many images take to pack.
IMAGES_PER_WORKER = 400


def run(function: Callable[..., None], tasks: Sequence[tuple[Any, ...]], *, workers: int) -> Iterator[int]:
    """Call ``function(*task)`` for each task; yields the task's place as it is done, in any order.

    One worker is this process itself. More are spawned, never forked, since the caller may have threads.
    An exception of a task is raised here, after which no further task starts. Raises PlatformError where a
    worker dies.
    """
    if workers <= 1 or len(tasks) <= 1:
        for place, task in enumerate(tasks):
            function(*task)
            yield place
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn, initializer=_start) as executor:
        places = {executor.submit(function, *task): place for place, task in enumerate(tasks)}
        try:
            for future in as_completed(places):
                _raise(future)
                yield places[future]
        finally:
            executor.shutdown(wait=True, cancel_futures=True)  # nobody writes any more when this returns


def workers_for(images: int) -> int:
    """How many processes pay off for so many images."""
    return max(1, min(cores(), images // IMAGES_PER_WORKER))


def cores() -> int:
    """Cores this process may use: its affinity, cut to the quota of its container (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            return max(1, min(allowed, int(limit) // int(period)))
    return allowed


def _raise(future: Future[None]) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise PlatformError(
            "a worker process died, often because memory ran out",
            hint="run again, with more memory or fewer cores: what is finished is kept",
        ) from error


def _start() -> None:
    """In a new worker: one thread, deaf to Ctrl-C (the parent stops it), gone when its parent is."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # After a kill -9 of the parent, workers would wait for tasks for ever: they hold each other's pipe open.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

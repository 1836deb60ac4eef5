"""Which of several nodes fell first, and why, from what their pods have said.

Where one falls, the others lose their neighbour and fall too; the first line of all is the cause. A process that a
signal killed has no line of its own: torchrun tells of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from medflow.platform.kubernetes.node import MARK

SIGNAL = re.compile(r"Signal \d+ \(SIG\w+\) received by PID \d+")
#: What a process says that has only lost its neighbour.
NEIGHBOUR = re.compile(r"DistBackendError|DistNetworkError|Connection closed by peer|Connection reset by peer|Gloo")


def first_words(logs: Mapping[str, str]) -> str | None:
    """The cause in one line, or None where none of the logs, by pod, has one. They begin each line with its time."""
    found = sorted(_told(logs))
    own = [item for item in found if not NEIGHBOUR.search(item[1])]
    for _, text, pod in own or found:
        return f"{text} (pod {pod})"
    return None


def _told(logs: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Time, words and pod of each line that tells of an error; the log's own times, which sort as text."""
    for pod, log in logs.items():
        for line in log.splitlines():
            time, _, words = line.partition(" ")
            killed = SIGNAL.search(words)
            if words.startswith(MARK):
                yield time, words.removeprefix(MARK), pod
            elif killed:
                yield time, f"its process was killed: {killed.group()}", pod

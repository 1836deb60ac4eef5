"""The program of one process of one node: its part of a training that a step has asked for.

torchrun starts it, with the folder of the order in the artifact store as its argument. What it raises of medflow's
errors goes into that folder, for the step to raise; every error is told in one line, which begins with ``MARK``.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import torch

from medflow.errors import MedflowError
from medflow.fit import nodes
from medflow.platform import stack
from medflow.platform.context import StoredFiles
from medflow.platform.kubernetes.entrypoint import prepare

MARK = "medflow node: "


def main(folder: str) -> int:
    """Take part; the exit code."""
    prepare()
    client = stack.client()
    files = StoredFiles(client.active_stack.artifact_store, folder)
    try:
        order = nodes.order_in(files)
        parts: dict[str, Any] = {name: client.get_artifact_version(key).load() for name, key in order.inputs.items()}
        nodes.take_part(files, order, parts["train"], parts["val"], parts["pixels"])
    except (MedflowError, torch.OutOfMemoryError) as error:
        code = _told(error)
        nodes.tell_failure(files, error)
        return code
    except Exception as error:
        return _told(error)
    return 0


def _told(error: BaseException) -> int:
    traceback.print_exception(error)
    place = f"process {int(os.environ['RANK']) + 1} of {os.environ['WORLD_SIZE']}"
    text = " ".join(str(error).split())
    print(f"{MARK}{place}: {type(error).__name__}: {text}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, MedflowError) else 1


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: other ranks wait for this one, and the group's own end would wait for them.
    os._exit(code)

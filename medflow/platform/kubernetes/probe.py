"""The program of the pod that `medflow stack check` starts: what it reaches and has, as one JSON line.

The addresses are its arguments, ``NAME=URL``. Any answer counts, a refusal too: the way there is open.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request

MODULE = "medflow.platform.kubernetes.probe"
MARK = "medflow probe: "
SECONDS = 10


def main(arguments: list[str]) -> None:
    reached = dict(reach(*argument.partition("=")[::2]) for argument in arguments)
    shm = os.statvfs("/dev/shm")
    print(MARK + json.dumps({"reached": reached, "shm": shm.f_frsize * shm.f_blocks}), flush=True)


def reach(name: str, url: str) -> tuple[str, str]:
    """The name, and why the address does not answer; empty where it does."""
    try:
        urllib.request.urlopen(url, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return name, ""
    except OSError as error:
        return name, str(getattr(error, "reason", error))
    return name, ""


if __name__ == "__main__":
    main(sys.argv[1:])

"""gdcm in a process of its own.

gdcm alone reads JPEG lossless and JPEG-LS, and damaged bytes end its process: of 2000 files with up to five bytes
changed, about one in three hundred by an abort or a segmentation fault. That must not end a service, or an ingest of
100,000 files. So a child decodes: it is started at the first such image, kept for the next, and replaced when it dies.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO

import gdcm
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import UID

SECONDS = 60.0
"""How long one image may take."""
MEMORY_BYTES = 8 * 2**30
"""Address space of the child."""
_LENGTH = struct.Struct(">Q")


class Child:
    """One decoding process, for one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, data: bytes, syntax: UID, options: Mapping[str, object]) -> np.ndarray | None:
        """Pixels of encapsulated ``data`` as pydicom's decoder of ``syntax`` gives them; None where it could not.

        ``options``: those of ``pydicom.pixels.as_pixel_options``.
        """
        with self._lock:
            process = self._running()
            watch = threading.Timer(SECONDS, process.kill)
            watch.start()
            try:
                assert process.stdin and process.stdout
                _send(process.stdin, json.dumps({"syntax": str(syntax), "options": dict(options)}).encode(), data)
                facts, pixels = _receive(process.stdout), _receive(process.stdout)
            except (EOFError, OSError):  # it died of these bytes
                self.stop()
                return None
            finally:
                watch.cancel()
        found = json.loads(facts)
        return np.frombuffer(pixels, dtype=found["dtype"]).reshape(found["shape"]) if found else None

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        """The child of this process; after a fork that is another one."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            # A session of its own: Ctrl-C is for the parent, and must not look like a broken image.
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._owner = os.getpid()
        return self._process


CHILD = Child()
atexit.register(CHILD.stop)


def _send(stream: IO[bytes], *parts: bytes) -> None:
    for part in parts:
        stream.write(_LENGTH.pack(len(part)))
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """Raises EOFError where the other side is gone."""
    return _exactly(stream, _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0])


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _decoded(request: bytes, data: bytes) -> tuple[bytes, bytes]:
    asked = json.loads(request)
    try:
        decoder = get_decoder(UID(asked["syntax"]))
        pixels, _ = decoder.as_array(data, index=0, decoding_plugin="gdcm", **asked["options"])
    except Exception:
        return b"null", b""
    return json.dumps({"dtype": str(pixels.dtype), "shape": pixels.shape}).encode(), pixels.tobytes()


def main() -> None:
    """Answer requests until the parent is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gdcm.Trace.WarningOff()
    while True:
        try:
            request, data = _receive(sys.stdin.buffer), _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(sys.stdout.buffer, *_decoded(request, data))


if __name__ == "__main__":
    main()

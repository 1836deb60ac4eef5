"""Runs a packaged service as a process: started, waited for, and stopped with everything it started.

Where this process is killed and can stop nothing, Linux ends the service in its place (``medflow.orphans``).
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from medflow import orphans
from medflow.errors import ArtifactError, ServingError
from medflow.home import home as medflow_home
from medflow.records import Package, file_digest

LOOPBACK = "127.0.0.1"
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.1
LOG_LINES = 5
#: prctl(2): a signal for this process when the thread that started it ends.


@dataclass
class Server:
    """A running service. As a context manager it is stopped on the way out."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    scratch: Path
    workers: list[psutil.Process] = field(default_factory=list)
    """What the process started, as seen when the service was ready; each is a session of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> int:
        """Until the process ends by itself; its exit code. A SIGTERM meanwhile ends this process as an exit does."""
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            return self.process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """End the process and its workers: asked first, killed after STOP_SECONDS. Harmless when it has ended."""
        self.workers += _descendants(self.process)
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _kill(self.workers)  # none is left after an orderly end, all after a kill
        psutil.wait_procs(self.workers, timeout=STOP_SECONDS)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def last_lines(self, count: int = LOG_LINES) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


def start_server(
    packaged: Package | Path,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    home: Path | None = None,
    log: Path | None = None,
    ready_seconds: float = READY_SECONDS,
) -> Server:
    """Serve a package, or a folder from ``import_package``, and return once ``/readyz`` says yes.

    ``port`` 0 takes a free one. Bentos are unpacked below ``home`` (default: MEDFLOW_HOME). Raises ServingError
    where the port is taken, or the service is not ready in ``ready_seconds``; the last log lines are in the message.
    """
    address = _address(host)
    port = _free_port(address, port)
    below = home or medflow_home() / "bentos"
    bento = import_package(packaged, below) if isinstance(packaged, Package) else packaged
    scratch = Path(tempfile.mkdtemp(prefix="medflow-serve-"))
    server = Server(
        url=f"http://{_reachable(address)}:{port}",
        log=log or scratch / "serve.log",
        process=_spawn(bento, address, port, scratch, log or scratch / "serve.log"),
        scratch=scratch,
    )
    try:
        _wait_ready(server, ready_seconds)
    except BaseException:
        server.stop()
        raise
    return server


def import_package(package: Package, home: Path) -> Path:
    """Unpack the Bento below ``home``, once, and return the folder that ``bentoml serve`` takes.

    Raises ArtifactError where the file is not the one that was built.
    """
    target = home / package.facts.tag.replace(":", "-")
    if (target / "bento.yaml").is_file():
        return target
    if not package.bento.is_file() or file_digest(package.bento) != package.facts.bento_sha256:
        raise ArtifactError(
            f"{package.bento.name} is missing or is not the file that was built",
            hint="`medflow verify` names what is damaged; run the step `package` again",
        )
    part = home / f".{target.name}.{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tarfile.open(package.bento) as archive:
        archive.extractall(part, filter="data")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def _spawn(bento: Path, host: str, port: int, scratch: Path, log: Path) -> subprocess.Popen[bytes]:
    # A home of its own: bentoml empties the metrics folder in its home, also another server's.
    environment = {**os.environ, "BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "bentoml", "serve", str(bento.absolute()), "--host", host, "--port", str(port)]
    (scratch / "bentoml").mkdir()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=orphans.end_with(os.getpid()),
        )


def _wait_ready(server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    answer = "no answer"
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise _failed(server, f"the service ended with exit code {server.process.returncode}")
        status, answer = _ask(f"{server.url}/readyz")
        if status == 200:
            server.workers = _descendants(server.process)
            return
        if "golden" in answer:  # it will not become ready by waiting
            break
        time.sleep(POLL_SECONDS)
    raise _failed(server, f"the service was not ready: {answer}")


def _ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace").strip()
    except OSError as error:
        return 0, str(error)


def _failed(server: Server, what: str) -> ServingError:
    return ServingError(f"{what}\n{server.last_lines()}".strip(), hint="the package may be damaged: `medflow verify`")


def _address(host: str) -> str:
    """An IP address, which is all that bentoml takes. Raises ServingError."""
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        raise ServingError(
            f"{host!r} is no IP address to listen on", hint="use 127.0.0.1, or 0.0.0.0 for all"
        ) from None


def _reachable(address: str) -> str:
    return {"0.0.0.0": LOOPBACK, "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)


def _free_port(address: str, port: int) -> int:
    """``port`` if it can be listened on, or a free one for 0. Raises ServingError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {address} port {port}: {error.strerror}", hint="choose another with --port"
            ) from error
        return trial.getsockname()[1]


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(workers: list[psutil.Process]) -> None:
    """psutil knows a process by number and start time, so a number taken over by another is left alone."""
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()

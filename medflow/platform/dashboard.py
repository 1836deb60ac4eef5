"""The ZenML dashboard and the MLflow UI, side by side on this machine, until Ctrl-C.

The client stays on SQLite: `zenml login --local` would move it to a REST server that makes runs twice as slow
and breaks every command when it dies.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from medflow import orphans
from medflow.errors import PlatformError
from medflow.home import home
from medflow.platform import stack
from medflow.progress import say

START_SECONDS = 180.0
STOP_SECONDS = 10.0


def serve(host: str, zenml_port: int, mlflow_port: int) -> None:
    """Start both, print both addresses, wait for Ctrl-C, stop both."""
    with running(host, zenml_port, mlflow_port) as addresses:
        for name, address in addresses.items():
            print(f"{name}  {address}", flush=True)
        say("Ctrl-C stops both")
        _until_interrupted()


@contextmanager
def running(host: str, zenml_port: int, mlflow_port: int) -> Iterator[Mapping[str, str]]:
    """Both servers, ready; yields name → address."""
    client = stack.client()
    for port in (zenml_port, mlflow_port):
        _refuse_taken(host, port)
    # Without this the first visit shows an onboarding survey.
    client.update_user(
        "default",
        updated_email="default@localhost.local",
        updated_email_opt_in=False,
        updated_metadata={"finished_onboarding_survey": True, "overview_tour_done": True},
    )
    commands = {"zenml": _zenml(host, zenml_port), "mlflow": _mlflow(host, mlflow_port)}
    addresses = {"zenml": f"http://{host}:{zenml_port}", "mlflow": f"http://{host}:{mlflow_port}"}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, (command, environment) in commands.items():
            processes.append(_start(name, command, environment))
        for process, (name, address) in zip(processes, addresses.items(), strict=True):
            _wait(name, process, address + "/health")
        yield addresses
    finally:
        for process in processes:
            _stop(process)


def _zenml(host: str, port: int) -> tuple[list[str], dict[str, str]]:
    folder = home() / "dashboard"
    folder.mkdir(parents=True, exist_ok=True)
    database = Path(os.environ["ZENML_LOCAL_STORES_PATH"]) / "default_zen_store" / "zenml.db"
    environment = {
        "ZENML_CONFIG_PATH": str(folder),
        "ZENML_SERVER": "true",
        "ZENML_SERVER_DEPLOYMENT_TYPE": "local",
        "ZENML_SERVER_AUTH_SCHEME": "NO_AUTH",
        "ZENML_SERVER_AUTO_ACTIVATE": "true",
        "ZENML_SERVER_ALLOW_LOCAL_FILE_ACCESS": "true",
        "ZENML_STORE_TYPE": "sql",
        "ZENML_STORE_URL": f"sqlite:///{database}",
        "DISABLE_DATABASE_MIGRATION": "true",
    }
    command = ["-m", "uvicorn", "zenml.zen_server.zen_server_api:app"]
    return [sys.executable, *command, "--host", host, "--port", str(port), "--log-level", "warning"], environment


def _mlflow(host: str, port: int) -> tuple[list[str], dict[str, str]]:
    command = ["-m", "mlflow", "server", "--backend-store-uri", stack.mlflow_uri(), "--workers", "1"]
    artifacts = ["--artifacts-destination", (stack.mlflow_folder() / "artifacts").as_uri()]
    return [sys.executable, *command, *artifacts, "--host", host, "--port", str(port)], {}


def _start(name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    log = home() / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {key: value for key, value in os.environ.items() if key != "ZENML_ACTIVE_STACK_ID"}
    with log.open("wb") as stream:
        # A session of its own, so that Ctrl-C reaches this process alone, which then stops both in order.
        return subprocess.Popen(
            command,
            env={**variables, **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=orphans.end_with(os.getpid()),
        )


def _wait(name: str, process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    log = home() / "logs" / f"{name}.log"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urlopen(url, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.3)
    raise PlatformError(f"the {name} server did not start", hint=f"its log is {log}")


def _refuse_taken(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PlatformError(f"port {port} is taken", hint="choose another port") from error


def _until_interrupted() -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

"""Is everything here that a run needs? One record a check, each with what to do where it is amiss.

Nothing heavy is imported and nothing is made: the platform's modules create the state folder and read the
environment when they are imported, and this must work where exactly that fails.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from medflow.errors import CredentialsError
from medflow.home import home
from medflow.records import Record

PYTHON = ((3, 11), (3, 13))  # at least, below
DISK_GB = 5.0
MEMORY_GB = 4.0
PORTS: Mapping[int, tuple[str, str]] = {
    3000: ("serve", "medflow serve MODEL --port 3001"),
    8237: ("ZenML dashboard", "medflow dashboard --zenml-port 8300"),
    5000: ("MLflow UI", "medflow dashboard --mlflow-port 5001"),
}
ROOT = Path(__file__).resolve().parents[1]
CPU_ONLY = "none; training uses the CPU"


class Health(Record):
    """One line of ``medflow doctor``."""

    check: str
    ok: bool
    found: str
    remedy: str = ""
    """What to do; empty where nothing is amiss."""
    needed: bool = True
    """A run on this machine needs it. What is not needed, such as a GPU, never fails the whole."""


def examine() -> tuple[Health, ...]:
    """Every check. A check that cannot be carried out is itself amiss, never an exception."""
    checks: tuple[Callable[[], Health], ...] = (python, packages, gpu, disk, memory, kaggle, state, stack, uv)
    return (*(_carried_out(check) for check in checks), *(port(number) for number in PORTS))


def _carried_out(check: Callable[[], Health]) -> Health:
    try:
        return check()
    except Exception as error:
        found = f"the check failed: {type(error).__name__}: {error}"
        return Health(check=check.__name__, ok=False, found=found, remedy="tell us with `medflow doctor --json`")


# -- what runs -----------------------------------------------------------------------------------


def python() -> Health:
    least, below = PYTHON
    version = ".".join(str(part) for part in sys.version_info[:3])
    ok = least <= sys.version_info[:2] < below
    return Health(
        check="python",
        ok=ok,
        found=f"{version}, {sys.executable}",
        remedy="" if ok else f"use Python {least[0]}.{least[1]}: remove .venv, then `make setup`",
    )


def packages() -> Health:
    """Installed versions against requirements.lock where it lies beside the package, else against what it requires."""
    lock = ROOT / "requirements.lock"
    wrong = _differ_from_lock(lock.read_text()) if lock.is_file() else _miss_requirements(_requirements())
    against = "requirements.lock" if lock.is_file() else "what medflow requires"
    found = f"as in {against}" if not wrong else f"{len(wrong)} differ from {against}: {', '.join(wrong[:5])}"
    remedy = "`make setup` installs exactly requirements.lock" if lock.is_file() else "`pip install --upgrade medflow`"
    return Health(check="packages", ok=not wrong, found=found, remedy=remedy if wrong else "")


def _differ_from_lock(text: str) -> list[str]:
    from packaging.markers import Marker

    wrong = []
    for name, pinned, marker in re.findall(
        r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)(?:\s*;\s*([^\\\n]+))?", text, re.MULTILINE
    ):
        if marker and not Marker(marker.strip()).evaluate():
            continue
        version = _installed(name)
        if version is None or version.partition("+")[0] != pinned.partition("+")[0]:
            wrong.append(f"{name} {version or 'absent'} ({pinned})")
    return wrong


def _requirements() -> list[str]:
    project = ROOT / "pyproject.toml"
    if project.is_file():
        found: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
        return found
    return importlib.metadata.requires("medflow") or []


def _miss_requirements(requirements: list[str]) -> list[str]:
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement.name} {version or 'absent'} ({requirement.specifier or 'any'})")
    return wrong


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def uv() -> Health:
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    return Health(
        check="uv",
        ok=found is not None,
        found=found or "not on PATH",
        remedy="" if found else "`make setup` puts it into .venv; without it a run does not record its packages",
        needed=False,
    )


# -- the machine ---------------------------------------------------------------------------------


def gpu() -> Health:
    """Whether torch sees the GPU that the driver sees; torch is asked only where there is one."""
    names = _nvidia()
    if not names:
        return Health(check="gpu", ok=True, found=CPU_ONLY, needed=False)
    import torch

    return Health(
        check="gpu",
        ok=torch.cuda.is_available(),
        found=f"{', '.join(names)}; torch {torch.__version__} {'sees it' if torch.cuda.is_available() else 'does not'}",
        remedy="" if torch.cuda.is_available() else f"the driver must support CUDA {torch.version.cuda}; update it",
        needed=False,
    )


def _nvidia() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def disk() -> Health:
    free = shutil.disk_usage(_existing(home())).free / 1e9
    return Health(
        check="disk",
        ok=free >= DISK_GB,
        found=f"{free:.0f} GB free at {_existing(home())}",
        remedy="" if free >= DISK_GB else f"free {DISK_GB:g} GB, or set MEDFLOW_HOME to a folder on another disk",
    )


def memory() -> Health:
    free = _available_memory() / 1e9
    return Health(
        check="memory",
        ok=free >= MEMORY_GB,
        found=f"{free:.0f} GB available",
        remedy=""
        if free >= MEMORY_GB
        else f"{MEMORY_GB:g} GB are needed: end other programs, or lower train.batch_size",
    )


def _available_memory() -> int:
    """Bytes that a new process may take: the machine's, or the container's limit where that is lower."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (value := limit.read_text().strip()).isdecimal():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, int(value) - used)
    return free


def port(number: int) -> Health:
    user, other = PORTS[number]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
            free = True
        except OSError:
            free = False
    return Health(
        check=f"port {number}",
        ok=free,
        found=f"{'free' if free else 'taken'} ({user})",
        remedy="" if free else f"end what listens there, or use another: `{other}`",
        needed=False,
    )


# -- accounts and state --------------------------------------------------------------------------


def kaggle() -> Health:
    from medflow.kaggle import credentials

    ways = "set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY; needed only for datasets that ask for consent"
    try:
        found = credentials()
    except CredentialsError as error:
        return Health(check="kaggle", ok=False, found=error.message, remedy=error.hint, needed=False)
    if found is None:
        return Health(check="kaggle", ok=False, found="no credentials", remedy=ways, needed=False)
    return Health(check="kaggle", ok=True, found=f"credentials from {found.where}", needed=False)


def state() -> Health:
    folder = home()
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder)):
            pass
        problem = "" if not folder.exists() or folder.is_dir() else "is no folder"
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
    return Health(
        check="state",
        ok=not problem,
        found=f"{folder} {problem or ('is writable' if folder.exists() else 'will be made by the first run')}",
        remedy="set MEDFLOW_HOME to a folder that you may write" if problem else "",
    )


def stack() -> Health:
    """The local stack, read from ZenML's own database without ZenML, which takes seconds to import."""
    name = _stack_name()
    stores = Path(os.environ.get("ZENML_LOCAL_STORES_PATH") or home() / "zenml" / "stores")
    database = stores / "default_zen_store" / "zenml.db"
    if not database.is_file():
        return Health(check="stack", ok=True, found=f"{name} will be registered by the first run")
    try:
        names = _stacks_in(database)
    except sqlite3.DatabaseError as error:
        remedy = f"restore {database} from a copy, or set MEDFLOW_HOME to a new folder"
        return Health(check="stack", ok=False, found=f"{database.name} cannot be read: {error}", remedy=remedy)
    here = name in names
    return Health(
        check="stack", ok=True, found=f"{name} {'is in place' if here else 'will be registered by the first run'}"
    )


def _stack_name() -> str:
    from medflow.config._yaml import read_document
    from medflow.config.places import shipped

    return str(read_document(shipped() / "on" / "local.yaml").values["stack"])


def _stacks_in(database: Path) -> list[str]:
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        return [row[0] for row in connection.execute("select name from stack")]
    finally:
        connection.close()


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest parent that exists."""
    return next(path for path in _with_parents(folder) if path.exists())


def _with_parents(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.parents

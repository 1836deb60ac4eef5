"""What training and evaluation report to, and where a checkpoint may be put.

Two protocols, so that the domain library never imports a tracker or an artifact store:
``medflow.platform`` implements both, tests implement them in memory or on a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medflow.atomic import write_bytes


class Tracker(Protocol):
    """Live record of one training or evaluation; called once an epoch, never once a batch."""

    def params(self, values: Mapping[str, str | int | float | bool]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def file(self, path: Path, folder: str) -> None: ...

    def model(self, files: Sequence[Path], name: str) -> None:
        """The finished model's files, for a tracker that keeps models itself."""
        ...


class Silent:
    """A tracker that keeps nothing."""

    def params(self, values: Mapping[str, str | int | float | bool]) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        pass

    def file(self, path: Path, folder: str) -> None:
        pass

    def model(self, files: Sequence[Path], name: str) -> None:
        pass


class Files(Protocol):
    """A flat folder in some store. ``write`` is atomic: a reader sees the old bytes or the new ones."""

    def read(self, name: str) -> bytes | None:
        """The bytes, or None where no such file is."""
        ...

    def write(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...

    def names(self) -> list[str]: ...


class LocalFiles:
    """``Files`` in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / name, data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if not path.name.endswith(".part"))

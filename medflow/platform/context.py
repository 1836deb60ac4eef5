"""What a running step needs of its surroundings: a folder to work in, a place for checkpoints, a tracker."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zenml import get_step_context
from zenml.artifact_stores import BaseArtifactStore
from zenml.config.step_configurations import Step

from medflow.atomic import replacing
from medflow.errors import PlatformError, SourceError
from medflow.home import home
from medflow.platform import stack
from medflow.records import digest_of

FILES_VARIABLE = "MEDFLOW_FILES"
"""A step's environment, and so its cache key, has under it the digest of the files that its settings name."""


def work_folder() -> Path:
    """A folder of this machine for the running step, the same when the same step is tried again.

    Named by the step's cache key (inputs, settings, code), so that what a killed attempt left is found
    by the next and never by another step. ``medflow run`` removes it once the run is complete.
    """
    folder = home() / "work" / _step_key()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def planned_steps() -> Mapping[str, Step]:
    """The steps of the running pipeline as they are configured, by name, those to come included."""
    snapshot = get_step_context().pipeline_run.snapshot
    if snapshot is None:
        raise PlatformError("this run has no record of its steps", hint="start it with `medflow run`")
    return snapshot.step_configurations


def checkpoints() -> StoredFiles:
    """Where the running step keeps its checkpoints: in the artifact store, for any process or pod to go on."""
    store = stack.client().active_stack.artifact_store
    return StoredFiles(store, posixpath.join(store.path, "checkpoints", _step_key()))


def refuse_changed(files: Sequence[tuple[str, str]]) -> None:
    """Raise SourceError where ``files``, names and digests as they are now, are not those of the running step's key."""
    if files and digest_of(files) != os.environ[FILES_VARIABLE]:
        names = ", ".join(name for name, _ in files)
        raise SourceError(f"what the model starts from changed after the run was defined: {names}", hint="run again")


def _step_key() -> str:
    run = get_step_context().step_run
    return str(run.cache_key or run.id)


class StoredFiles:
    """``tracking.Files`` in an artifact store.

    A local store gets a temporary name and a rename; an object store's put is atomic by itself. What other processes
    have written since is seen.
    """

    def __init__(self, store: BaseArtifactStore, uri: str) -> None:
        self.store = store
        self.uri = uri

    def read(self, name: str) -> bytes | None:
        self._look_again()
        try:
            with self.store.open(self._path(name), "rb") as stream:
                data: bytes = stream.read()
                return data
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self.store.makedirs(self.uri)
        with self._atomic(self._path(name)) as path, self.store.open(path, "wb") as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        self._look_again()
        if self.store.exists(self._path(name)):
            self.store.remove(self._path(name))

    def names(self) -> list[str]:
        self._look_again()
        if not self.store.exists(self.uri):
            return []
        return sorted(str(name) for name in self.store.listdir(self.uri) if not str(name).endswith(".part"))

    def _path(self, name: str) -> str:
        return posixpath.join(self.uri, name)

    def _look_again(self) -> None:
        """Forget listings, which the clients of object stores keep."""
        if not self.store.config.is_local:
            store: Any = self.store
            store.filesystem.invalidate_cache(self.uri)

    @contextmanager
    def _atomic(self, path: str) -> Iterator[str]:
        if not self.store.config.is_local:
            yield path
            return
        with replacing(Path(path)) as part:
            yield str(part)

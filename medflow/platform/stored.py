"""Artifacts as folders with an index, in any artifact store.

Every medflow artifact is a folder of files and an ``index.json`` that names each file with its size
and sha256. The sha256 of the index itself is kept as the artifact's metadata (``index_sha256``), so
that a missing, truncated or altered artifact is told from a whole one: existence, sizes and the
index's digest before a run (`quick_check`), every byte on demand (`full_check`).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from medflow.errors import ArtifactError
from medflow.records import Record, file_digest

if TYPE_CHECKING:
    from zenml.artifact_stores import BaseArtifactStore

INDEX = "index.json"
#: Transfers to a remote store at a time: 8 threads move 200 files of 64 KiB in half the time of one.
TRANSFERS = 8
CHUNK = 4 << 20


class Entry(Record):
    """One file of an artifact."""

    path: str
    bytes: int
    sha256: str


class Index(Record):
    files: tuple[Entry, ...]

    def size(self) -> int:
        return sum(entry.bytes for entry in self.files)

    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=0, sort_keys=True).encode()


def write_folder(store: BaseArtifactStore, uri: str, root: Path, paths: Iterable[Path]) -> Index:
    """Copy files that lie below ``root`` to ``uri``, and write the index last."""
    paths = sorted(paths)

    def send(path: Path) -> Entry:
        relative = path.relative_to(root).as_posix()
        return _send(store, _join(uri, relative), relative, path)

    _make_folders(store, uri, {path.parent.relative_to(root).as_posix() for path in paths})
    with ThreadPoolExecutor(TRANSFERS) as pool:
        return _write_index(store, uri, tuple(pool.map(send, paths)))


def write_files(store: BaseArtifactStore, uri: str, files: Mapping[str, bytes]) -> Index:
    """Write the given bytes by name to ``uri``, and the index last."""
    entries = []
    for name, data in sorted(files.items()):
        with store.open(_join(uri, name), "wb") as stream:
            stream.write(data)
        entries.append(Entry(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return _write_index(store, uri, tuple(entries))


def read_file(store: BaseArtifactStore, uri: str, name: str) -> bytes:
    """One file's bytes, checked against the index. Raises ArtifactError where they differ."""
    entry = next((entry for entry in read_index(store, uri).files if entry.path == name), None)
    data = _read(store, _join(uri, name)) if entry else None
    if data is None or entry is None:
        raise _damaged(uri, f"{name} is missing")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _damaged(uri, f"{name} holds other bytes than were written")
    return data


def local_folder(store: BaseArtifactStore, uri: str, temporary: Callable[[], Path]) -> Path:
    """The artifact's folder on this machine: in place on a local store, downloaded and checked otherwise."""
    if store.config.is_local:
        return Path(uri)
    root = temporary()

    def receive(entry: Entry) -> None:
        target = root / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(store, _join(uri, entry.path), target)
        if file_digest(target) != entry.sha256:
            raise _damaged(uri, f"{entry.path} arrived with other bytes than were written")

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(receive, read_index(store, uri).files))
    return root


def read_index(store: BaseArtifactStore, uri: str) -> Index:
    """Raises ArtifactError where there is none or it cannot be read."""
    data = _read(store, _join(uri, INDEX))
    if data is None:
        _refuse_elsewhere(store, uri)
        raise _damaged(uri, f"it has no {INDEX}")
    try:
        return Index.model_validate_json(data)
    except ValueError as error:
        raise _damaged(uri, f"its {INDEX} cannot be read") from error


def quick_check(store: BaseArtifactStore, uri: str, index_sha256: str) -> str | None:
    """What is wrong with an artifact by existence, sizes and index digest, or None."""
    data = _read(store, _join(uri, INDEX))
    if data is None:
        return f"{INDEX} is missing"
    if hashlib.sha256(data).hexdigest() != index_sha256:
        return f"{INDEX} was altered"
    for entry in Index.model_validate_json(data).files:
        problem = _size_problem(store, _join(uri, entry.path), entry)
        if problem:
            return problem
    return None


def full_check(store: BaseArtifactStore, uri: str, index_sha256: str) -> str | None:
    """The same, and every byte is read and hashed."""
    problem = quick_check(store, uri, index_sha256)
    if problem:
        return problem
    for entry in read_index(store, uri).files:
        if _digest(store, _join(uri, entry.path)) != entry.sha256:
            return f"{entry.path} was altered"
    return None


def _write_index(store: BaseArtifactStore, uri: str, entries: tuple[Entry, ...]) -> Index:
    index = Index(files=entries)
    with store.open(_join(uri, INDEX), "wb") as stream:
        stream.write(index.to_bytes())
    return index


def _send(store: BaseArtifactStore, target: str, relative: str, path: Path) -> Entry:
    state = hashlib.sha256()
    size = 0
    with path.open("rb") as source, store.open(target, "wb") as sink:
        while block := source.read(CHUNK):
            state.update(block)
            sink.write(block)
            size += len(block)
    return Entry(path=relative, bytes=size, sha256=state.hexdigest())


def _receive(store: BaseArtifactStore, source: str, target: Path) -> None:
    with store.open(source, "rb") as stream, target.open("wb") as sink:
        while block := stream.read(CHUNK):
            sink.write(block)


def _read(store: BaseArtifactStore, path: str) -> bytes | None:
    try:
        with store.open(path, "rb") as stream:
            data: bytes = stream.read()
            return data
    except FileNotFoundError:
        return None


def _refuse_elsewhere(store: BaseArtifactStore, uri: str) -> None:
    """ZenML calls a file that is not below its store's root one that is not found."""
    if not uri.startswith(str(store.path)):
        raise ArtifactError(
            f"the artifact at {uri} is not in its artifact store, which is at {store.path} now",
            hint="give the store its former address again: what lies there is not lost",
        )


def _digest(store: BaseArtifactStore, path: str) -> str:
    state = hashlib.sha256()
    for block in _blocks(store, path):
        state.update(block)
    return state.hexdigest()


def _blocks(store: BaseArtifactStore, path: str) -> Iterator[bytes]:
    with store.open(path, "rb") as stream:
        while block := stream.read(CHUNK):
            yield block


def _size_problem(store: BaseArtifactStore, path: str, entry: Entry) -> str | None:
    if not store.exists(path):
        return f"{entry.path} is missing"
    size = store.size(path)
    if size is not None and size != entry.bytes:
        return f"{entry.path} has {size} bytes, {entry.bytes} were written"
    return None


def _make_folders(store: BaseArtifactStore, uri: str, folders: set[str]) -> None:
    for folder in sorted(folders):
        store.makedirs(_join(uri, folder) if folder != "." else uri)


def _join(uri: str, path: str) -> str:
    return posixpath.join(uri, path)


def _damaged(uri: str, problem: str) -> ArtifactError:
    return ArtifactError(
        f"the artifact at {uri} is damaged: {problem}",
        hint="run the pipeline again: a damaged artifact's step is not taken from the cache",
    )

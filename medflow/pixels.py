"""Packed pixels: ``.npy`` shards, written once in order and read back memory-mapped.

A shard is a plain NumPy file (format 1.0, C order, uint8) of shape (rows, height, width, channels) for
images or (rows, height, width) for masks. Masks are row-aligned with images; the row of an image without
a mask is zero. Rows are numbered through all shards of a store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.lib import format as npy

from medflow.errors import ArtifactError, DataError
from medflow.records import Pixels, PixelSpec, PixelStore, Shard, file_digest

#: Shards whose full digest was right, by path, digest, size and time of change: checked once a process.
_verified: set[tuple[str, str, int, int]] = set()


def open_store(pixels: Pixels, size: int) -> Store:
    """The store whose images are ``size`` x ``size``. Raises ArtifactError where there is none."""
    for store in pixels.index.stores:
        if (store.spec.height, store.spec.width) == (size, size):
            return Store(pixels.root, store)
    known = ", ".join(str(store.spec.height) for store in pixels.index.stores)
    raise ArtifactError(
        f"no pixels are stored at size {size}; there are {known}",
        hint=f"name a model of that size in the YAML, or add {size} to ingest.extra_sizes, and run again",
    )


class Store:
    """All images at one size. Reading is thread-safe; each shard is checked and mapped when first read."""

    def __init__(self, root: Path, store: PixelStore) -> None:
        self.spec: PixelSpec = store.spec
        frame = (store.spec.height, store.spec.width)
        self._images = _Rows(root, store.images, (*frame, store.spec.channels))
        self._masks = _Rows(root, store.masks, frame)

    def __len__(self) -> int:
        return self._images.rows

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, in the given order: int64 (n,) → uint8 (n, height, width, channels).

        Raises DataError for a row outside the store, ArtifactError for a shard that is missing or altered.
        """
        return self._images.take(rows)

    def masks(self, rows: np.ndarray) -> np.ndarray:
        """Likewise uint8 (n, height, width), 0 or 1. Raises DataError where the store has no masks."""
        if not self._masks.rows:
            raise DataError("these pixels have no masks", hint="the dataset has no mask head; ask for images only")
        return self._masks.take(rows)


class _Rows:
    """Rows of one shape, numbered through several shards."""

    def __init__(self, root: Path, shards: tuple[Shard, ...], shape: tuple[int, ...]) -> None:
        self._root = root
        self._shards = shards
        self._shape = shape
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards], dtype=np.int64)])
        self._open: dict[int, np.ndarray] = {}
        self.rows = int(self._starts[-1])

    def take(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.rows):
            raise DataError(
                f"pixel rows {rows.min()} to {rows.max()} were asked for, and the store has {self.rows}",
                hint="use a manifest and pixels of the same ingest",
            )
        out = np.empty((len(rows), *self._shape), dtype=np.uint8)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        inside = rows - self._starts[shards]
        for place, (number, row) in enumerate(zip(shards.tolist(), inside.tolist(), strict=True)):
            out[place] = self._shard(number)[row]
        return out

    def _shard(self, number: int) -> np.ndarray:
        array = self._open.get(number)
        if array is None:
            array = self._open[number] = open_shard(self._root, self._shards[number], self._shape)
        return array


def open_shard(root: Path, shard: Shard, row_shape: tuple[int, ...]) -> np.ndarray:
    """One shard, checked and memory-mapped read-only: uint8 (rows, *row_shape).

    Raises ArtifactError where it is missing, truncated, of another shape, or where its sha256 is not the one
    in the index. The sha256 is computed once a process for each shard.
    """
    path = root / shard.path
    offset = check_shape(path, shard, row_shape)
    state = path.stat()
    seen = (str(path.absolute()), shard.sha256, state.st_size, state.st_mtime_ns)
    if seen not in _verified:
        if file_digest(path) != shard.sha256:
            raise _damaged(shard, "its content is not what was written (sha256 differs)")
        _verified.add(seen)
    mapped = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(shard.rows, *row_shape))
    return mapped.view(np.ndarray)  # a plain array: indexing a memmap costs three times as much


def check_shape(path: Path, shard: Shard, row_shape: tuple[int, ...]) -> int:
    """Check header and size only; returns where the data start, in bytes. Raises ArtifactError."""
    try:
        with path.open("rb") as stream:
            found = _read_header(stream)
            offset = stream.tell()
    except FileNotFoundError:
        raise _damaged(shard, "it is missing") from None
    except OSError as error:
        raise _damaged(shard, f"it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _damaged(shard, f"its header cannot be read ({error})") from error
    expected = (shard.rows, *row_shape)
    if found != (expected, False, np.dtype(np.uint8)):
        raise _damaged(shard, f"it holds {found[2]} {found[0]}, expected uint8 {expected}")
    size, right = path.stat().st_size, offset + int(np.prod(expected))
    if size != right:
        raise _damaged(shard, f"it has {size} bytes, expected {right}")
    return offset


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"format {version}, expected (1, 0)")
    return npy.read_array_header_1_0(stream)


def _damaged(shard: Shard, problem: str) -> ArtifactError:
    return ArtifactError(
        f"pixel shard {shard.path} is damaged: {problem}",
        hint="run the pipeline again: a damaged artifact is made anew; `medflow verify` lists all of them",
    )


# -- writing -------------------------------------------------------------------------------------


class ShardWriter:
    """Appends rows to one new shard; memory stays at one row, and no reader sees it before ``finish``.

    Used as a context manager: left without ``finish``, nothing remains.
    """

    def __init__(self, root: Path, name: str, row_shape: tuple[int, ...]) -> None:
        self._name = name
        self._path = root / name
        self._part = part_of(self._path)
        self._shape = row_shape
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._part.open("wb")
        self._rows = 0
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._stream.close()  # on a full disk what is left to write fails once more
        finally:
            self._part.unlink(missing_ok=True)

    def append(self, row: np.ndarray) -> None:
        """One row, uint8 of the shard's row shape. Raises DataError for another."""
        if row.shape != self._shape or row.dtype != np.uint8:
            raise DataError(
                f"a row is {row.dtype} {row.shape}, expected uint8 {self._shape}",
                hint="bring it to its PixelSpec first",
            )
        self._stream.write(row.tobytes())
        self._rows += 1

    def finish(self) -> Shard:
        """Write the true number of rows into the header and give the file its name."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()
        shard = Shard(path=self._name, rows=self._rows, sha256=file_digest(self._part))
        self._part.replace(self._path)
        return shard

    def _write_header(self) -> None:
        # NumPy leaves room for the first axis to grow, so both headers have the same length.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self._rows, *self._shape)}
        npy.write_array_header_1_0(self._stream, header)


def part_of(path: Path) -> Path:
    """The temporary name, of this process alone, under which a file is written."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")

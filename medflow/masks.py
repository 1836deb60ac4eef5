"""The way back from a model's mask, in the model's frame, to the image that was sent; and its PNG.

A mask of the largest image takes 100 MB. A service draws several while it decodes others, so they are made and
written band by band, and never held whole there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medflow.preprocess import inner_box
from medflow.records import PixelSpec

#: A mask is brought to its image's size in squares of this side, or in bands of as many pixels.
TILE = 2048

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawn:
    """A mask as a file."""

    png: bytes
    """8-bit gray, 0 or 255."""
    fraction: float
    """Share of the pixels that are set, 0 to 1."""


def unfit_mask(scores: np.ndarray, cut: float, spec: PixelSpec, size: tuple[int, int]) -> np.ndarray:
    """A model's mask on the image that it was made from: bool (h, w) for ``size`` (width, height), upright.

    ``scores`` float32 (height, width) of ``spec`` are probabilities, 0 to 1; a pixel is set at or above ``cut``.
    The padding falls away, and what is left is resized bilinearly and only then cut: were the decision itself
    enlarged, its outline would be a staircase as coarse as the frame. At the frame's own size nothing changes.
    Beside the result, which is one byte a pixel, this holds one band.
    """
    mask, top = np.empty((size[1], size[0]), dtype=bool), 0
    for band in _bands(scores, cut, spec, size):
        mask[top : top + len(band)] = band
        top += len(band)
    return mask


def draw_mask(scores: np.ndarray, cut: float, spec: PixelSpec, size: tuple[int, int]) -> Drawn:
    """The mask of ``unfit_mask`` as a file, of which one band is held at a time."""
    marked = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal marked
        for band in _bands(scores, cut, spec, size):
            marked += int(np.count_nonzero(band))
            yield band

    png = _png(counted(), size)
    return Drawn(png=png, fraction=marked / (size[0] * size[1]))


def mask_png(mask: np.ndarray) -> bytes:
    """PNG, 8-bit gray, 0 or 255, of a bool mask (height, width)."""
    height, width = mask.shape
    return _png((mask[rows] for rows in _rows((width, height))), (width, height))


def _bands(scores: np.ndarray, cut: float, spec: PixelSpec, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """A mask's rows from top to bottom, bool (rows, width)."""
    left, top, width, height = inner_box(size, spec)
    inner = Image.fromarray(np.ascontiguousarray(scores[top : top + height, left : left + width], dtype=np.float32))
    for rows in _rows(size):
        band = np.empty((rows.stop - rows.start, size[0]), dtype=bool)
        for columns, box in _tiles(rows, size, inner.size):
            shape = (columns.stop - columns.start, len(band))
            band[:, columns] = np.asarray(inner.resize(shape, Image.Resampling.BILINEAR, box=box)) >= cut
        yield band


def _rows(size: tuple[int, int]) -> Iterator[slice]:
    step = min(TILE, max(1, TILE * TILE // size[0]))
    return (slice(top, min(top + step, size[1])) for top in range(0, size[1], step))


def _tiles(rows: slice, size: tuple[int, int], source: tuple[int, int]) -> Iterator[tuple[slice, Box]]:
    """Columns of a band and the box of ``source`` (width, height) that lies under them. The box is no border:
    Pillow's filter looks beyond it, so tiles meet without a seam."""
    across, down = source[0] / size[0], source[1] / size[1]
    for left in range(0, size[0], TILE):
        columns = slice(left, min(left + TILE, size[0]))
        yield columns, (left * across, rows.start * down, columns.stop * across, rows.stop * down)


def _png(bands: Iterable[np.ndarray], size: tuple[int, int]) -> bytes:
    """Pillow writes whole images alone. PNG specification, third edition, sections 5 (chunks) and 9 (filter 0)."""
    deflate = zlib.compressobj(level=1)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))]
    for band in bands:
        lines = np.zeros((len(band), size[0] + 1), dtype=np.uint8)  # each begins with the number of its filter
        lines[:, 1:][band] = 255
        parts.append(_chunk(b"IDAT", deflate.compress(lines.data)))
    parts += [_chunk(b"IDAT", deflate.flush()), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

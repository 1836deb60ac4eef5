"""Mean and standard deviation of the training pixels, one pass over the packed store."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import cv2
import numpy as np

from medflow.errors import DataError
from medflow.pixels import Store, open_store
from medflow.progress import track
from medflow.records import ChannelStats, Manifest, Normalization, Pixels

#: OpenCV hands counts over as float32, which are whole only up to here.
_PIXELS_AT_ONCE = 2**24
_VALUES = np.arange(256, dtype=np.int64)


def normalize(train: Manifest, pixels: Pixels) -> Normalization:
    """Per channel and stored size, over every pixel of the training rows as stored (padding included).

    Means and (population) standard deviations are in 0 to 1. Sums are whole numbers, so the result depends
    neither on the order of rows nor on the machine. Raises DataError where there are no training rows or a
    channel is constant, ArtifactError where a shard is damaged.
    """
    rows = np.sort(train.pixel_rows())
    if not len(rows):
        raise DataError(
            "there are no training images to normalize by", hint="look at the split: its train part is empty"
        )
    sizes = tuple(_stats(open_store(pixels, store.spec.height), rows) for store in pixels.index.stores)
    return Normalization(sizes=sizes, images=len(rows))


def _stats(store: Store, rows: np.ndarray) -> ChannelStats:
    counts = _histogram(store, rows)
    moments = [_moments(channel) for channel in counts]
    spec = store.spec
    return ChannelStats(
        height=spec.height,
        width=spec.width,
        mean=tuple(mean for mean, _ in moments),
        std=tuple(std for _, std in moments),
    )


def _histogram(store: Store, rows: np.ndarray) -> np.ndarray:
    """How often each value occurs: int64 (channels, 256)."""
    spec = store.spec
    step = max(1, min(256, _PIXELS_AT_ONCE // (spec.height * spec.width)))
    counts = np.zeros((spec.channels, 256), dtype=np.int64)
    starts = range(0, len(rows), step)
    for start in track(starts, what=f"normalize {spec.height}", total=len(starts)):
        images = store.images(rows[start : start + step]).reshape(-1, spec.width, spec.channels)
        for channel in range(spec.channels):
            counts[channel] += cv2.calcHist([images], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def _moments(counts: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation in 0 to 1, from whole-number sums."""
    pixels = int(counts.sum())
    total, squares = int(counts @ _VALUES), int(counts @ _VALUES**2)
    variance = Fraction(squares * pixels - total * total, pixels * pixels)
    if not variance:
        raise DataError(
            "a channel of the training pixels is constant, so it cannot be normalized",
            hint="look at validate's findings for blank images",
        )
    return float(Fraction(total, pixels) / 255), sqrt(variance) / 255

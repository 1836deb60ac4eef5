"""Packed pixels: the shape of a store, and the folder that holds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from medflow.records.base import Record, Whole


class PixelSpec(Record):
    """The shape that every image is brought to, once, before it is stored or scored."""

    height: int = Field(gt=0, le=4096)
    width: int = Field(gt=0, le=4096)
    channels: Literal[1, 3]
    fit: Literal["stretch", "pad"] = "stretch"
    """``stretch`` fills the frame; ``pad`` keeps the aspect ratio and pads with zeros, centred."""
    interpolation: Literal["area-linear"] = "area-linear"
    """Whole-number box average first, bilinear for the rest: antialiased, unlike bilinear alone."""


class Shard(Record):
    """One ``.npy`` file of a store."""

    path: str
    rows: int
    sha256: str


class PixelStore(Record):
    """All images at one size: uint8 (rows, height, width, channels); masks uint8 (rows, height, width), 0 or 1."""

    spec: PixelSpec
    images: tuple[Shard, ...]
    masks: tuple[Shard, ...] = ()


class PixelIndex(Record):
    rows: int
    stores: tuple[PixelStore, ...]


@dataclass(frozen=True)
class Pixels(Whole):
    """Packed pixels in a folder, memory-mapped. ``index`` names every shard and its digest."""

    root: Path
    index: PixelIndex

    def digest(self) -> str:
        return self.index.digest()


class Share(Record):
    """Which of all listed images one shard of `ingest` packed: the chunks whose number is ``number`` modulo ``of``."""

    number: int
    of: int
    images: int
    """Listed in all, by every shard."""
    listing: str
    """Digest of every listed row; shards that saw different listings cannot be put together."""

"""The rows that both sides learn from and are judged on: a generated twin, ingested and split by medflow."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medflow import datasets
from medflow.checks import check
from medflow.config.sections import RunConfig
from medflow.ingest import ingest
from medflow.normalize import normalize
from medflow.pixels import open_store
from medflow.records import Generated, HeadSpec, Manifest, Normalization, Pixels, Placement, Source, Split
from medflow.split import split


@dataclass(frozen=True)
class Material:
    root: Path
    """The twin's data root: what a peer's own loader reads."""
    parts: Split
    pixels: Pixels
    normalization: Normalization
    heads: tuple[HeadSpec, ...]

    @property
    def label_head(self) -> HeadSpec:
        return next(head for head in self.heads if head.kind != "mask")

    @property
    def mask_head(self) -> HeadSpec | None:
        return next((head for head in self.heads if head.kind == "mask"), None)

    def masks(self, rows: Manifest, size: int) -> np.ndarray:
        """True masks as stored, uint8 (n, size, size), 0 or 1."""
        return open_store(self.pixels, size).masks(rows.pixel_rows())


def prepare(config: RunConfig, images: int, seed: int, work: Path) -> Material:
    """Twin ``seed`` of the config's dataset, its packed pixels and its split; what is there already is kept."""
    root = work / f"{config.dataset}_{images}_{seed}"
    spec = datasets.get(config.dataset)
    if not root.exists():
        part = root.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        spec.twin(part, Generated(images=images, seed=seed))  # with the table of lesions, which an archive lacks
        part.replace(root)
    source = Source(kind="folder", fingerprint=f"twin {images} {seed}", uri=str(root))
    sizes = tuple(sorted({model.size for model in config.models if model.size}))
    manifest, pixels = ingest(source, spec, sizes, config.ingest, work / f"packed_{root.name}")
    kept = check(manifest, config.validate_).kept
    parts = split(kept, Placement(), config.split.model_copy(update={"seed": seed}))
    heads = tuple(head for head in spec.card.heads if config.heads is None or head.name in config.heads)
    return Material(root, parts, pixels, normalize(parts.train, pixels), heads)

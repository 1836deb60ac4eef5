"""Rows and pixels for the handmade bundle, and predictions made of chosen numbers, for the evaluation tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import handmade
import numpy as np
import pyarrow

from medflow.records import (
    MANIFEST_COLUMNS,
    Evaluation,
    HeadSpec,
    Manifest,
    PixelIndex,
    Pixels,
    PixelSpec,
    PixelStore,
    Predictions,
    Score,
    Shard,
    Unseen,
    file_digest,
)

EXCLUSIVE = HeadSpec(kind="exclusive", name="diagnosis", labels=("a", "b", "c"))
INDEPENDENT = HeadSpec(kind="independent", name="findings", labels=("x", "y"))
MASK = HeadSpec(kind="mask", name="lung", labels=("lung",))


def data(
    root: Path, *, rows: int = 40, per_group: int = 2, without_mask: Sequence[int] = ()
) -> tuple[Manifest, Pixels]:
    """Gray squares around 128; the truth disagrees with the handmade bundle in every fifth row.

    The true mask is the upper half, the images' bright pixels are scattered.
    """
    rng = np.random.default_rng(rows)
    bright = np.arange(rows) % 2 == 1
    levels = np.where(bright, 150, 105)[:, None, None, None]
    images = np.clip(rng.normal(levels, 20, (rows, handmade.SIZE, handmade.SIZE, 1)), 0, 255).astype(np.uint8)
    masks = np.zeros(images.shape[:3], dtype=np.uint8)
    masks[:, : handmade.SIZE // 2] = 1
    root.mkdir(parents=True)
    spec = PixelSpec(height=handmade.SIZE, width=handmade.SIZE, channels=1)
    store = PixelStore(
        spec=spec, images=(_shard(root, "images.npy", images),), masks=(_shard(root, "masks.npy", masks),)
    )
    truth = np.where(np.arange(rows) % 5 == 0, ~bright, bright)
    return _manifest(truth, per_group, without_mask), Pixels(root=root, index=PixelIndex(rows=rows, stores=(store,)))


def predictions(
    scores: np.ndarray,
    targets: np.ndarray,
    head: HeadSpec = INDEPENDENT,
    *,
    groups: Sequence[str] | None = None,
    bundle: str = "bundle",
    rows: str = "rows",
) -> Predictions:
    """Predictions of one label head from its probabilities and targets, (n, labels) each."""
    ids = np.array([f"image{row:04d}" for row in range(len(scores))], dtype=object)
    return Predictions(
        bundle_digest=bundle,
        rows_digest=rows,
        heads=(head,),
        image_id=ids,
        group=ids if groups is None else np.array(groups, dtype=object),
        probabilities={head.name: np.asarray(scores, dtype=np.float32)},
        targets={head.name: np.asarray(targets, dtype=np.float32)},
    )


def unseen(test: Predictions, left: Predictions | None = None) -> Unseen:
    """Of test rows, those that an incumbent never learnt from: all where none are given."""
    left = left or test
    return Unseen(
        test_rows=test.rows_digest, test_images=len(test), test_groups=len(set(test.group)),
        rows=left.rows_digest, images=len(left), groups=len(set(left.group)),
    )  # fmt: skip


def evaluation(
    *,
    model: str = "tiny/net",
    variant: str = "torch",
    role: str = "val",
    latency_ms: float | None = 10.0,
    bytes: int = 1000,
    rows: str = "rows",
    **values: float,
) -> Evaluation:
    """An evaluation with the given macro values; Dice is of the head ``lung``, the rest of ``diagnosis``."""
    scores = [
        Score(
            head="lung" if metric == "dice" else "diagnosis",
            label="macro", metric=metric, value=value, low=value - 0.02, high=value + 0.02, n=100,
        )
        for metric, value in {"accuracy": 0.5, **values}.items()
    ]  # fmt: skip
    return Evaluation(
        bundle_digest=f"{model} {variant}",
        rows_digest=rows,
        model=model,
        variant=variant,
        role=role,
        scores=tuple(scores),
        bytes=bytes,
        latency_ms=latency_ms,
    )


def _manifest(bright: np.ndarray, per_group: int, without_mask: Sequence[int]) -> Manifest:
    rows = len(bright)
    known: dict[str, list[object]] = {
        "image_id": [f"image{row}" for row in range(rows)],
        "path": [f"image{row}.png" for row in range(rows)],
        "mask_path": [None if row in without_mask else f"mask{row}.png" for row in range(rows)],
        "group": [f"patient{row // per_group}" for row in range(rows)],
        "sex": ["F" if row % 3 else "M" for row in range(rows)],
        "pixel_row": list(range(rows)),
    }
    columns = {
        name: pyarrow.array(known.get(name, [None] * rows), type=getattr(pyarrow, kind)())
        for name, kind in MANIFEST_COLUMNS.items()
    }
    columns["diagnosis.dark"] = pyarrow.array((~bright).astype(np.int8))
    columns["diagnosis.bright"] = pyarrow.array(bright.astype(np.int8))
    return Manifest(card=handmade.DATASET, table=pyarrow.table(columns))


def _shard(root: Path, name: str, array: np.ndarray) -> Shard:
    np.save(root / name, array, allow_pickle=False)
    return Shard(path=name, rows=len(array), sha256=file_digest(root / name))

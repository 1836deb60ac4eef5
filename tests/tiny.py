"""A few small images that a network can learn, made in a test: manifest, pixels, normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow

from medflow.config.sections import DualPathModel, ModelConfig, MonaiUNet, SmpModel, TimmModel
from medflow.pixels import ShardWriter
from medflow.records import (
    MANIFEST_COLUMNS,
    ChannelStats,
    DatasetCard,
    HeadSpec,
    Manifest,
    Normalization,
    PixelIndex,
    Pixels,
    PixelSpec,
    PixelStore,
    Preprocess,
)

LABELS = HeadSpec(kind="exclusive", name="diagnosis", labels=("dark", "bright", "striped"))
FINDINGS = HeadSpec(kind="independent", name="findings", labels=("bright", "striped"))
REGION = HeadSpec(kind="mask", name="region", labels=("region",))
SIZE = 32
#: The smallest network of each kind of model that takes images alone.
TINY: dict[str, ModelConfig] = {
    "timm": TimmModel(name="test_resnet", size=SIZE, pretrained="none", stats="unit", hidden=(8,)),
    "monai_unet": MonaiUNet(size=SIZE, channels=(4, 8, 16), features=8, label_hidden=(8,), label_dropout=(0.1, 0.1)),
    "smp": SmpModel(
        name="unet", encoder="test_efficientnet", size=SIZE, pretrained="none", stats="unit",
        decoder_channels=(16, 8, 8, 8, 8),
    ),
    "dual_path": DualPathModel(
        encoder="test_efficientnet", size=SIZE, pretrained="none", stats="unit", pyramid=8, reduction=4, hidden=(8,)
    ),
}  # fmt: skip


def preprocess(size: int = SIZE, channels: int = 1) -> Preprocess:
    spec = PixelSpec(height=size, width=size, channels=channels)
    return Preprocess(pixels=spec, mean=(0.4,) * channels, std=(0.25,) * channels)


def draw(rows: int, seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (n, size, size, 1), masks uint8 (n, size, size) and classes int64 (n,): a disc on noise."""
    rng = np.random.default_rng(seed)
    classes = np.arange(rows) % 3
    y, x = np.mgrid[:size, :size]
    centres = rng.uniform(0.35, 0.65, (rows, 2, 1, 1)) * size
    masks = (np.hypot(y - centres[:, 0], x - centres[:, 1]) < 0.28 * size).astype(np.uint8)
    inside = np.where(classes[:, None, None] == 0, 60, 170) - 90 * ((classes[:, None, None] == 2) & (x % 4 < 2))
    images = np.where(masks == 1, inside, 30) + rng.normal(0, 20, masks.shape)
    return np.clip(images, 0, 255).astype(np.uint8)[..., None], masks, classes


def make(folder: Path, *, rows: int = 24, seed: int = 0) -> tuple[Manifest, Manifest, Pixels, Normalization]:
    """Training and validation rows (two to one), their pixels below ``folder``, and statistics.

    One row has an unknown diagnosis and one has no mask. The same seed, the same bytes.
    """
    images, masks, classes = draw(rows, seed)
    spec = PixelSpec(height=SIZE, width=SIZE, channels=1)
    shards = []
    for name, array in (("images.npy", images), ("masks.npy", masks)):
        with ShardWriter(folder, name, array.shape[1:]) as writer:
            for row in array:
                writer.append(row)
            shards.append(writer.finish())
    store = PixelStore(spec=spec, images=(shards[0],), masks=(shards[1],))
    manifest = _manifest(classes, rows)
    pixels = Pixels(root=folder, index=PixelIndex(rows=rows, stores=(store,)))
    stats = ChannelStats(height=SIZE, width=SIZE, mean=(0.3,), std=(0.2,))
    cut = 2 * rows // 3
    parts = (manifest.take(range(cut)), manifest.take(range(cut, rows)))
    return *parts, pixels, Normalization(sizes=(stats,), images=cut)


def _manifest(classes: np.ndarray, rows: int) -> Manifest:
    card = DatasetCard(name="tiny", title="Tiny", heads=(LABELS, FINDINGS, REGION), channels=1, grouped_by="patient")
    columns: dict[str, list] = {name: [None] * rows for name in MANIFEST_COLUMNS}
    columns["image_id"] = [f"image_{row:04d}" for row in range(rows)]
    columns["group"] = list(columns["image_id"])
    columns["pixel_row"] = list(range(rows))
    columns["mask_path"] = [f"masks/{row}.png" for row in range(rows)]
    columns["mask_path"][1] = None
    types = {name: getattr(pyarrow, kind)() for name, kind in MANIFEST_COLUMNS.items()}
    arrays = {name: pyarrow.array(values, type=types[name]) for name, values in columns.items()}
    for head in (LABELS, FINDINGS):
        for index, column in enumerate(head.columns()):
            values = (classes == index + (head is FINDINGS)).astype(int).tolist()
            values[2] = None
            arrays[column] = pyarrow.array(values, type=pyarrow.int8())
    return Manifest(card=card, table=pyarrow.table(arrays))

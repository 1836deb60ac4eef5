"""Tiny packed pixels, their manifest, and untrained torch bundles over them, for the compression tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
from safetensors.torch import save_file

from medflow import models
from medflow.bundle import finish
from medflow.config.sections import ModelConfig, MonaiUNet, SmpModel, TimmModel
from medflow.records import (
    MANIFEST_COLUMNS,
    Bundle,
    DatasetCard,
    HeadSpec,
    Manifest,
    ModelCard,
    PixelIndex,
    Pixels,
    PixelSpec,
    PixelStore,
    Preprocess,
    Shard,
    file_digest,
)

DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=("left", "right"))
LUNG = HeadSpec(kind="mask", name="lung", labels=("lung",))
CARD = DatasetCard(
    name="tiny", title="A square at one side", heads=(DIAGNOSIS, LUNG), channels=1, grouped_by="near-duplicates"
)
RESNET = TimmModel(name="resnet18", pretrained="none", size=32, stats="unit")
UNET = MonaiUNet(size=32, channels=(16, 32, 64), features=16, label_hidden=(32, 16), label_dropout=(0.1, 0.1, 0.1))


def data(root: Path, *, rows: int = 48, size: int = 32, seed: int = 0) -> tuple[Manifest, Pixels]:
    """``rows`` noisy images with a bright square left or right, and that square as the mask."""
    rng = np.random.default_rng([seed, size])
    images = rng.integers(0, 90, (rows, size, size, 1), dtype=np.uint8)
    masks = np.zeros((rows, size, size), dtype=np.uint8)
    side = np.arange(rows) % 2
    for row in range(rows):
        top, left = rng.integers(2, size // 2, 1)[0], 2 + side[row] * size // 2
        masks[row, top : top + size // 3, left : left + size // 3] = 1
    images[masks.astype(bool)] += 120
    root.mkdir(parents=True)
    store = PixelStore(
        spec=PixelSpec(height=size, width=size, channels=1),
        images=(_shard(root, "images.npy", images),),
        masks=(_shard(root, "masks.npy", masks),),
    )
    return _manifest(side), Pixels(root=root, index=PixelIndex(rows=rows, stores=(store,)))


def torch_bundle(root: Path, model: ModelConfig, val: Manifest, pixels: Pixels, *, seed: int = 0) -> Bundle:
    """An untrained network of ``model`` as a bundle."""
    heads = CARD.heads if isinstance(model, MonaiUNet | SmpModel) else (DIAGNOSIS,)
    spec = pixels.index.stores[0].spec
    preprocess = Preprocess(pixels=spec, mean=(0.3,), std=(0.25,))
    network = models.build(model, heads, preprocess, seed=seed).eval()
    root.mkdir(parents=True, exist_ok=True)
    weights = root / "weights.part"
    save_file(models.tensors_of(network), weights)
    card = ModelCard(
        name=f"tiny/{model.key}",
        variant="torch",
        dataset=CARD,
        heads=heads,
        preprocess=preprocess,
        model=model.model_dump(mode="json"),
        weights_from="none",
        data_digest=val.digest(),
        weights_digest="",
        bytes=0,
        parameters=sum(item.numel() for item in network.parameters()),
    )
    return finish(root / "torch", card, weights, val, pixels)


def _shard(root: Path, name: str, array: np.ndarray) -> Shard:
    np.save(root / name, array, allow_pickle=False)
    return Shard(path=name, rows=len(array), sha256=file_digest(root / name))


def _manifest(side: np.ndarray) -> Manifest:
    rows = len(side)
    known: dict[str, list[object]] = {
        "image_id": [f"image{row}" for row in range(rows)],
        "path": [f"image{row}.png" for row in range(rows)],
        "mask_path": [f"mask{row}.png" for row in range(rows)],
        "group": [f"image{row}" for row in range(rows)],
        "pixel_row": list(range(rows)),
    }
    columns = {
        name: pyarrow.array(known.get(name, [None] * rows), type=getattr(pyarrow, kind)())
        for name, kind in MANIFEST_COLUMNS.items()
    }
    columns["diagnosis.left"] = pyarrow.array((side == 0).astype(np.int8))
    columns["diagnosis.right"] = pyarrow.array((side == 1).astype(np.int8))
    return Manifest(card=CARD, table=pyarrow.table(columns))

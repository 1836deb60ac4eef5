from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from medflow.errors import DataError
from medflow.normalize import normalize
from medflow.pixels import ShardWriter
from medflow.records import DatasetCard, HeadSpec, Manifest, PixelIndex, Pixels, PixelSpec, PixelStore

ROWS = 23


def card(channels: int) -> DatasetCard:
    head = HeadSpec(kind="exclusive", name="finding", labels=("no", "yes"))
    return DatasetCard(name="d", title="D", heads=(head,), channels=channels, grouped_by="patient")


def manifest(rows: list[int] | np.ndarray, channels: int = 1) -> Manifest:
    return Manifest(card=card(channels), table=pyarrow.table({"pixel_row": pyarrow.array(rows, pyarrow.int64())}))


def packed(root: Path, images: dict[int, np.ndarray]) -> Pixels:
    """A store for each size, in two shards."""
    stores = []
    for size, array in images.items():
        shards = []
        for number, part in enumerate(np.array_split(array, 2)):
            with ShardWriter(root, f"{size}-{number}.npy", array.shape[1:]) as writer:
                for row in part:
                    writer.append(row)
                shards.append(writer.finish())
        spec = PixelSpec(height=size, width=size, channels=array.shape[-1])
        stores.append(PixelStore(spec=spec, images=tuple(shards)))
    return Pixels(root=root, index=PixelIndex(rows=ROWS, stores=tuple(stores)))


def noise(size: int, channels: int) -> np.ndarray:
    rng = np.random.default_rng([size, channels])
    spread = rng.integers(20, 256, channels)
    return rng.integers(0, spread, (ROWS, size, size, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_numpy(tmp_path: Path, channels: int) -> None:
    images = {5: noise(5, channels), 16: noise(16, channels)}
    rows = [3, 0, 22, 9, 10, 11, 12]
    found = normalize(manifest(rows, channels), packed(tmp_path, images))
    assert found.images == len(rows)
    for stats, (size, array) in zip(found.sizes, images.items(), strict=True):
        train = array[rows].astype(np.float64) / 255
        assert (stats.height, stats.width) == (size, size)
        np.testing.assert_allclose(stats.mean, train.mean(axis=(0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(stats.std, train.std(axis=(0, 1, 2)), rtol=1e-12)


def test_other_rows_do_not_count(tmp_path: Path) -> None:
    array = noise(5, 1)
    array[7:] = 255
    expected = array[:7].mean() / 255
    assert normalize(manifest(list(range(7))), packed(tmp_path, {5: array})).sizes[0].mean[0] == pytest.approx(expected)


def test_the_order_of_rows_changes_no_bit(tmp_path: Path) -> None:
    pixels = packed(tmp_path, {16: noise(16, 3)})
    rows = np.random.default_rng(0).permutation(ROWS)
    assert normalize(manifest(rows, 3), pixels).digest() == normalize(manifest(np.arange(ROWS), 3), pixels).digest()


def test_more_images_than_one_batch_and_large_ones(tmp_path: Path) -> None:
    # 23 images of 1024 x 1024 exceed what one float32 count holds exactly.
    array = np.full((ROWS, 1024, 1024, 1), 200, dtype=np.uint8)
    array[:, 0, 0, 0] = 0
    stats = normalize(manifest(list(range(ROWS))), packed(tmp_path, {1024: array})).sizes[0]
    share = 1 / 1024**2
    assert stats.mean[0] == pytest.approx(200 * (1 - share) / 255, rel=1e-14)
    assert stats.std[0] == pytest.approx(200 * np.sqrt(share * (1 - share)) / 255, rel=1e-12)


def test_no_rows_and_constant_channels_are_refused(tmp_path: Path) -> None:
    array = noise(5, 3)
    array[..., 1] = 9
    pixels = packed(tmp_path, {5: array})
    with pytest.raises(DataError, match="no training images"):
        normalize(manifest([], 3), pixels)
    with pytest.raises(DataError, match="constant"):
        normalize(manifest([0, 1], 3), pixels)

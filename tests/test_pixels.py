from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.errors import ArtifactError, DataError
from medflow.pixels import ShardWriter, open_store
from medflow.records import PixelIndex, Pixels, PixelSpec, PixelStore

SIZE = 6
SHARD_ROWS = (4, 1, 7)
ROWS = sum(SHARD_ROWS)


def content(channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (ROWS, SIZE, SIZE, channels), dtype=np.uint8)
    return images, rng.integers(0, 2, (ROWS, SIZE, SIZE), dtype=np.uint8)


def written(root: Path, channels: int = 3, *, masks: bool = True) -> Pixels:
    images, outlines = content(channels)
    shards: dict[str, list] = {"images": [], "masks": []}
    start = 0
    for number, rows in enumerate(SHARD_ROWS):
        for kind, array in (("images", images), ("masks", outlines)):
            with ShardWriter(root, f"{SIZE}/{kind}-{number}.npy", array.shape[1:]) as writer:
                for row in array[start : start + rows]:
                    writer.append(row)
                shards[kind].append(writer.finish())
        start += rows
    spec = PixelSpec(height=SIZE, width=SIZE, channels=channels)
    store = PixelStore(spec=spec, images=tuple(shards["images"]), masks=tuple(shards["masks"]) if masks else ())
    return Pixels(root=root, index=PixelIndex(rows=ROWS, stores=(store,)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shard_is_a_plain_numpy_file(tmp_path: Path, channels: int) -> None:
    pixels = written(tmp_path, channels)
    images, masks = content(channels)
    store = pixels.index.stores[0]
    for shards, expected in ((store.images, images), (store.masks, masks)):
        loaded = [np.load(tmp_path / shard.path, allow_pickle=False) for shard in shards]
        assert (np.concatenate(loaded) == expected).all()


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    return written(tmp_path_factory.mktemp("pixels"))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=30))
def test_rows_come_back_in_the_order_asked_for(pixels: Pixels, rows: list[int]) -> None:
    images, masks = content(3)
    store = open_store(pixels, SIZE)
    asked = np.array(rows, dtype=np.int64)
    assert store.images(asked).shape == (len(rows), SIZE, SIZE, 3)
    assert (store.images(asked) == images[asked]).all()
    assert (store.masks(asked) == masks[asked]).all()


def test_what_is_returned_is_the_callers_own(pixels: Pixels) -> None:
    store = open_store(pixels, SIZE)
    first = store.images(np.array([0]))
    first[:] = 7
    assert (store.images(np.array([0])) == content(3)[0][:1]).all()


@pytest.mark.parametrize("row", [-1, ROWS])
def test_rows_outside_the_store_are_refused(pixels: Pixels, row: int) -> None:
    with pytest.raises(DataError, match=str(ROWS)):
        open_store(pixels, SIZE).images(np.array([0, row]))


def test_a_size_that_is_not_stored_names_what_is(pixels: Pixels) -> None:
    with pytest.raises(ArtifactError, match=f"there are {SIZE}"):
        open_store(pixels, SIZE + 1)


def test_a_store_without_masks_says_so(tmp_path: Path) -> None:
    store = open_store(written(tmp_path, masks=False), SIZE)
    assert store.images(np.array([0])).size
    with pytest.raises(DataError, match="no masks"):
        store.masks(np.array([0]))


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-1])
    elif how == "grown":
        path.write_bytes(data + b"\0")
    elif how == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "another shape":
        np.save(path, np.zeros((7, SIZE, SIZE * 3), dtype=np.uint8))
    elif how == "pickled":
        np.save(path, np.array([object()] * 7), allow_pickle=True)
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "missing"),
        ("truncated", "bytes, expected"),
        ("grown", "bytes, expected"),
        ("altered", "sha256 differs"),
        ("another shape", "expected uint8"),
        ("pickled", "holds object"),
        ("empty", "header"),
    ],
)
def test_a_damaged_shard_is_named_and_the_others_still_serve(tmp_path: Path, how: str, words: str) -> None:
    pixels = written(tmp_path)
    open_store(pixels, SIZE).images(np.arange(ROWS))  # right once does not mean right for ever
    damage(tmp_path / f"{SIZE}/images-2.npy", how)
    store = open_store(pixels, SIZE)
    assert (store.images(np.arange(5)) == content(3)[0][:5]).all()
    with pytest.raises(ArtifactError, match=f"images-2.*{words}"):
        store.images(np.array([0, 5]))


def test_a_writer_left_early_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "images.npy", (2, 2)) as writer:
        writer.append(np.zeros((2, 2), dtype=np.uint8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", [np.zeros((2, 3), dtype=np.uint8), np.zeros((2, 2), dtype=np.float32)])
def test_a_row_of_another_shape_or_type_is_refused(tmp_path: Path, row: np.ndarray) -> None:
    with ShardWriter(tmp_path, "images.npy", (2, 2)) as writer, pytest.raises(DataError, match="expected uint8"):
        writer.append(row)


def test_the_index_does_not_say_where_the_pixels_lie(tmp_path: Path) -> None:
    assert written(tmp_path / "a").digest() == written(tmp_path / "b").digest()

"""Ingest in several shards: the same bytes as in one, or a refusal."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import SPEC, break_some, draw, source

from medflow import ingest as ingestion
from medflow.config.sections import IngestConfig
from medflow.errors import PlatformError, SourceError
from medflow.ingest import Ingested, ingest, ingest_shard
from medflow.merge_shards import merge_shards
from medflow.pixels import open_store
from medflow.records import Manifest, Pixels

SIZES = (24, 16)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three images, so that few images are many chunks."""
    monkeypatch.setattr(ingestion, "CHUNK_IMAGES", (3, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw(tmp_path_factory.mktemp("data"), 20)
    break_some(root)
    return root


def shards_of(data: Path, work: Path, shards: int) -> list[Ingested]:
    """Each in a work folder of its own, as in pods."""
    config = IngestConfig(shards=shards)
    return [
        ingest_shard(source(data), SPEC, SIZES, config, work / str(shard), shard, workers=1) for shard in range(shards)
    ]


def merged(parts: list[Ingested], work: Path) -> tuple[Manifest, Pixels]:
    return merge_shards(
        [part.manifest for part in parts], [part.pixels for part in parts], [part.share for part in parts], work
    )


def shard_files(pixels: Pixels) -> dict[str, bytes]:
    named = (shard for store in pixels.index.stores for shard in (*store.images, *store.masks))
    return {shard.path: (pixels.root / shard.path).read_bytes() for shard in named}


@settings(max_examples=8, deadline=None)
@given(images=st.integers(1, 23), shards=st.integers(1, 10), turn=st.randoms(use_true_random=False))
def test_any_number_of_shards_gives_the_content_of_one(images: int, shards: int, turn) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = draw(root / "data", images)
        (data / "images" / "a00.png").write_text("this is text")
        one = ingest(source(data), SPEC, SIZES, IngestConfig(), root / "one", workers=1)
        parts = shards_of(data, root / "parts", shards)
        assert sum(len(part.manifest) for part in parts) == images
        turn.shuffle(parts)
        several = merged(parts, root / "several")
        assert [item.digest() for item in several] == [item.digest() for item in one]
        assert several[0].table.equals(one[0].table) and several[0].findings == one[0].findings
        assert shard_files(several[1]) == shard_files(one[1])


def test_more_shards_than_images_leave_some_with_nothing(data: Path, tmp_path: Path) -> None:
    parts = shards_of(data, tmp_path / "parts", 9)
    assert [len(part.manifest) for part in parts] == [3, 3, 3, 3, 3, 3, 2, 0, 0]
    assert parts[8].pixels.index.rows == 0
    assert (
        merged(parts, tmp_path / "all")[0].digest()
        == ingest(source(data), SPEC, SIZES, IngestConfig(), tmp_path / "one", workers=1)[0].digest()
    )


def test_a_shard_decodes_its_own_images_alone(data: Path, tmp_path: Path) -> None:
    parts = shards_of(data, tmp_path / "parts", 2)
    ids = [set(part.manifest.column("image_id")) for part in parts]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 20
    for part in parts:
        good = part.manifest.take(np.flatnonzero([row is not None for row in part.manifest.column("pixel_row")]))
        assert len(open_store(part.pixels, 16).images(good.pixel_rows())) == part.pixels.index.rows == len(good)


def test_merging_again_over_what_a_killed_step_left(data: Path, tmp_path: Path) -> None:
    parts = shards_of(data, tmp_path / "parts", 3)
    (tmp_path / "all" / "pixels" / "16x16").mkdir(parents=True)
    (tmp_path / "all" / "pixels" / "16x16" / "images-00000.npy").write_bytes(b"half")
    pixels = merged(parts, tmp_path / "all")[1]
    open_store(pixels, 16).images(np.arange(pixels.index.rows))


def test_shards_that_saw_other_images_or_are_missing_are_refused(data: Path, tmp_path: Path) -> None:
    parts = shards_of(data, tmp_path / "parts", 3)
    with pytest.raises(PlatformError, match=r"shards \[0, 2\] were handed over, expected 0 to 2"):
        merged([parts[0], parts[2]], tmp_path / "all")
    with pytest.raises(PlatformError, match=r"\[0, 0, 1\]"):
        merged([parts[0], parts[0], parts[1]], tmp_path / "all")
    other = replace(parts[2], share=parts[2].share.model_copy(update={"listing": "0" * 64}))
    with pytest.raises(SourceError, match="saw different images"):
        merged([parts[0], parts[1], other], tmp_path / "all")

"""What the shards of `ingest` made, as the one manifest and the one set of pixels that a single ingest makes.

Chunks are cut by the data alone and named by their numbers, so their files are the same in whichever shard they
were packed: here they are put side by side, and rows and pixel rows are numbered through all of them. Whatever
looks across images, near-duplicates above all, begins after this.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow

from medflow.errors import PlatformError, SourceError
from medflow.records import Manifest, PixelIndex, Pixels, PixelStore, Shard, Share


def merge_shards(
    manifests: Sequence[Manifest], pixels: Sequence[Pixels], shares: Sequence[Share], work: Path
) -> tuple[Manifest, Pixels]:
    """Manifest and pixels of all shards, given in any one order; equal in content to those of one shard.

    ``work``: a folder into which the shards' files are linked, or copied where they lie on another disk.

    Raises SourceError where the shards listed different images, PlatformError where shards are missing or doubled.
    """
    _refuse_others(shares, manifests)
    root = work / "pixels"
    shutil.rmtree(root, ignore_errors=True)
    for part in pixels:
        for store in part.index.stores:
            for shard in (*store.images, *store.masks):
                _place(part.root / shard.path, root / shard.path)
    root.mkdir(parents=True, exist_ok=True)
    return _manifest(manifests), Pixels(root=root, index=_index([part.index for part in pixels]))


def _refuse_others(shares: Sequence[Share], manifests: Sequence[Manifest]) -> None:
    numbers, expected = sorted(share.number for share in shares), shares[0].of
    if numbers != list(range(expected)):
        raise PlatformError(
            f"shards {numbers} were handed over, expected 0 to {expected - 1}", hint="run the pipeline again"
        )
    listed = {(share.of, share.images, share.listing) for share in shares}
    if len(listed) > 1:
        raise SourceError(
            f"the shards of ingest saw different images: {sorted(images for _, images, _ in listed)} were listed",
            hint="the source changed during the run; run again while nothing is written there",
        )
    images = sum(len(manifest) for manifest in manifests)
    if images != shares[0].images:
        raise PlatformError(
            f"the shards of ingest hold {images} images, {shares[0].images} were listed", hint="run the pipeline again"
        )


def _manifest(manifests: Sequence[Manifest]) -> Manifest:
    table = pyarrow.concat_tables([manifest.table for manifest in manifests]).combine_chunks()
    ids = table.column("image_id").to_pylist()
    table = table.take(pyarrow.array(sorted(range(len(ids)), key=ids.__getitem__), pyarrow.int64()))
    good = [error is None for error in table.column("error").to_pylist()]
    before = accumulate(good, initial=0)
    numbers = [row if kept else None for row, kept in zip(before, good, strict=False)]
    place = table.column_names.index("pixel_row")
    table = table.set_column(place, table.schema.field(place), pyarrow.array(numbers, pyarrow.int64()))
    first = manifests[0]
    return Manifest(card=first.card, table=table, source=first.source, findings=first.findings)


def _index(parts: Sequence[PixelIndex]) -> PixelIndex:
    stores = tuple(
        PixelStore(
            spec=same[0].spec,
            images=_by_number(shard for store in same for shard in store.images),
            masks=_by_number(shard for store in same for shard in store.masks),
        )
        for same in zip(*(part.stores for part in parts), strict=True)
    )
    return PixelIndex(rows=sum(part.rows for part in parts), stores=stores)


def _by_number(shards: Iterable[Shard]) -> tuple[Shard, ...]:
    # Numbers have five digits, or more where there are more chunks: the longer path is the later one.
    return tuple(sorted(shards, key=lambda shard: (len(shard.path), shard.path)))


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)

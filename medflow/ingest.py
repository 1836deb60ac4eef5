"""Raw files → manifest and packed pixels, each image decoded once, on all cores.

Images are cut into chunks by their sorted ids. A worker process packs a chunk (``medflow.packing``) and
nothing but its finished files is kept, so a killed ingest goes on where it was: a finished chunk is not
done again. Results are the same bytes whatever the number of workers.

Chunks can also be dealt out to several steps, each in a pod of its own (``ingest_shard``); what they made is
put together by ``medflow.merge_shards``.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medflow import manifest_table, packing, pool
from medflow.config.sections import IngestConfig
from medflow.datasets._spec import DatasetSpec, Listing, Row
from medflow.errors import ConfigError, PlatformError
from medflow.fetch import bring, fetch, metadata_file
from medflow.imports import Sources, module_digest, ours_anywhere
from medflow.packing import Chunk, Item, Packed, Plan
from medflow.progress import say, track
from medflow.records import (
    DatasetCard,
    Manifest,
    PixelIndex,
    Pixels,
    PixelSpec,
    PixelStore,
    Shard,
    Share,
    Source,
    digest_of,
)
from medflow.s3 import AMBIENT, Access

#: Bounds of a chunk's length. Small enough that a kill costs little and every core has work, large enough
#: that a large dataset has a few hundred files; a shard of the largest size stays below ``SHARD_BYTES``.
CHUNK_IMAGES = (32, 512)
CHUNKS_AIMED_AT = 64
SHARD_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Ingested:
    """What one shard, or the only one, made of its share of the images."""

    manifest: Manifest
    """Its own rows; ``pixel_row`` counts in its own pixels."""
    pixels: Pixels
    share: Share


def ingest(
    source: Source,
    spec: DatasetSpec,
    sizes: tuple[int, ...],
    config: IngestConfig,
    work: Path,
    *,
    workers: int | None = None,
    access: Access = AMBIENT,
) -> tuple[Manifest, Pixels]:
    """Fetch, list, decode, measure and pack: ``ingest_shard`` where one shard is all."""
    alone = config.model_copy(update={"shards": 1})
    whole = ingest_shard(source, spec, sizes, alone, work, 0, workers=workers, access=access)
    return whole.manifest, whole.pixels


def ingest_shard(
    source: Source,
    spec: DatasetSpec,
    sizes: tuple[int, ...],
    config: IngestConfig,
    work: Path,
    shard: int,
    *,
    workers: int | None = None,
    access: Access = AMBIENT,
) -> Ingested:
    """Fetch, list all, and decode, measure and pack every ``config.shards``-th chunk, from number ``shard`` on.

    ``sizes``: side lengths of the square frames to store, beside ``config.extra_sizes``. ``work``: a folder
    for what is fetched and packed; given again, it is where a killed ingest goes on. ``workers``: processes;
    None takes the cores this process may use. ``access``: for a source in a bucket.

    The manifest is sorted by image id; an image that cannot be decoded has an ``error`` and no ``pixel_row``, a mask
    that cannot has a ``mask_error``.

    Raises SourceError and its kinds (``fetch``), DataError (no images, repeated ids), ConfigError (no size),
    PlatformError (disk full, a worker process died).
    """
    root = data_root(source, spec, work, access)
    listing = listed(source, spec, root, work, access)
    rows = manifest_table.ordered(listing.rows, spec.card)
    plan = plan_of(source, spec.card, sizes, config)
    folder = work / "pixels" / plan.digest()[:16]
    # In turn, not in runs: neighbouring images are alike, and so a class of large ones would fall to one shard.
    chunks = cut(rows, plan)[shard :: config.shards]
    data = bring(source, root, _paths(chunks), work / "data", access=access)
    with _alone(folder):
        packed = _pack_all(chunks, plan, data, folder, workers)
    return Ingested(
        manifest=_manifest(source, spec.card, listing, rows, packed),
        pixels=Pixels(root=folder, index=_index(plan, packed)),
        share=Share(number=shard, of=config.shards, images=len(rows), listing=digest_of([vars(row) for row in rows])),
    )


def _manifest(
    source: Source, card: DatasetCard, listing: Listing, rows: Sequence[Row], packed: Sequence[Packed]
) -> Manifest:
    """The rows of the packed images, in the order of ``rows``."""
    facts = {item.image_id: item for done in packed for item in done.facts}
    mine = [row for row in rows if row.image_id in facts]
    table = manifest_table.build(card, mine, [facts[row.image_id] for row in mine])
    return Manifest(card=card, table=table, source=source, findings=listing.findings)


def _paths(chunks: Sequence[Chunk]) -> frozenset[str]:
    items = [item for chunk in chunks for item in chunk.items]
    return frozenset([item.path for item in items] + [item.mask_path for item in items if item.mask_path])


def data_root(source: Source, spec: DatasetSpec, work: Path, access: Access = AMBIENT) -> Path:
    """The folder that the dataset's listing reads; a generated twin is made there, once."""
    if source.kind != "generated" or source.generated is None:
        return fetch(source, spec.card, work / "data", access=access)
    root = work / "twins" / source.digest()[:16]
    with _alone(root.parent):
        if not root.exists():
            part = root.with_name(f".{root.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            say(f"generating {source.generated.images} images of {spec.card.name}")
            spec.twin(part, source.generated)
            part.rename(root)
    return root


def listed(source: Source, spec: DatasetSpec, data: Path, work: Path, access: Access = AMBIENT) -> Listing:
    """What lies below ``data``, joined with the metadata file of the source where there is one."""
    metadata = metadata_file(source, work / "metadata", access=access)
    if metadata is None or spec.listing_with is None:
        return spec.listing(data)
    return spec.listing_with(data, metadata)


def plan_of(source: Source, card: DatasetCard, sizes: Sequence[int], config: IngestConfig) -> Plan:
    """What holds for every chunk. Raises ConfigError where no size is asked for."""
    wanted = sorted({*sizes, *config.extra_sizes})
    if not wanted:
        raise ConfigError("no size to store pixels at", hint="name a model, or set ingest.extra_sizes")
    specs = tuple(PixelSpec(height=size, width=size, channels=card.channels, fit=config.fit) for size in wanted)
    masks = card.mask_head() is not None
    return Plan(source=source.digest(), code=_code(), specs=specs, masks=masks, max_pixels=config.max_pixels)


def cut(rows: Sequence[Row], plan: Plan) -> list[Chunk]:
    """Rows in chunks; their length depends on the data alone, never on the machine."""
    largest = max(spec.height * spec.width * spec.channels for spec in plan.specs)
    low, high = CHUNK_IMAGES
    length = max(low, min(high, -(-len(rows) // CHUNKS_AIMED_AT)))
    length = max(1, min(length, SHARD_BYTES // largest))
    items = [Item(image_id=row.image_id, path=row.path, mask_path=row.mask_path) for row in rows]
    starts = range(0, len(items), length)
    return [Chunk(number=number, items=tuple(items[start : start + length])) for number, start in enumerate(starts)]


def _code() -> str:
    state = hashlib.sha256()
    for name, path in Sources().reached(["medflow.packing"], ours_anywhere).modules.items():
        state.update(f"{name} {module_digest(path)}".encode())
    return state.hexdigest()


# -- packing -------------------------------------------------------------------------------------


def _pack_all(chunks: Sequence[Chunk], plan: Plan, data: Path, folder: Path, workers: int | None) -> list[Packed]:
    _sweep(folder)
    done = {chunk.number: packing.finished(chunk, plan, folder) for chunk in chunks}
    todo = [chunk for chunk in chunks if done[chunk.number] is None]
    images = sum(len(chunk.items) for chunk in todo)
    if len(todo) < len(chunks):
        say(f"ingest: {len(chunks) - len(todo)} of {len(chunks)} chunks are packed already")
    _refuse_full_disk(images, plan, folder)
    for _ in track(_images_packed(todo, plan, data, folder, workers), what="ingest", total=images):
        pass
    return [done[chunk.number] or _packed(chunk, plan, folder) for chunk in chunks]


def _images_packed(chunks: Sequence[Chunk], plan: Plan, data: Path, folder: Path, workers: int | None) -> Iterator[str]:
    """Image ids, as their chunks get finished."""
    tasks = [(chunk, plan, data, folder) for chunk in chunks]
    images = sum(len(chunk.items) for chunk in chunks)
    try:
        for number in pool.run(packing.pack, tasks, workers=workers or pool.workers_for(images)):
            yield from (item.image_id for item in chunks[number].items)
    except OSError as error:
        raise PlatformError(
            f"pixels cannot be written below {folder}: {error.strerror or error}",
            hint="free space or name another folder in MEDFLOW_HOME, then run again: finished chunks are kept",
        ) from error


def _packed(chunk: Chunk, plan: Plan, folder: Path) -> Packed:
    packed = packing.finished(chunk, plan, folder)
    if packed is None:
        raise PlatformError(
            f"chunk {chunk.number} was packed and cannot be read back from {folder}",
            hint="check that no other program removes or changes files there, then run again",
        )
    return packed


def _index(plan: Plan, packed: Sequence[Packed]) -> PixelIndex:
    stores = tuple(
        PixelStore(
            spec=spec,
            images=_not_empty(done.images[place] for done in packed),
            masks=_not_empty(done.masks[place] for done in packed) if plan.masks else (),
        )
        for place, spec in enumerate(plan.specs)
    )
    return PixelIndex(rows=sum(shard.rows for shard in stores[0].images), stores=stores)


def _not_empty(shards: Iterator[Shard]) -> tuple[Shard, ...]:
    return tuple(shard for shard in shards if shard.rows)


# -- the work folder -----------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: another ingest of the same data waits, and then finds everything done.

    The kernel lets go of the lock when its holder dies, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("ingest: another process is packing the same data; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Remove what a killed ingest left half-written; called while the folder is held."""
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)


def _refuse_full_disk(images: int, plan: Plan, folder: Path) -> None:
    row = sum(spec.height * spec.width * (spec.channels + plan.masks) for spec in plan.specs)
    needed, free = images * row, shutil.disk_usage(folder).free
    if needed > free:
        raise PlatformError(
            f"{images:,} images need {needed / 1e6:,.1f} MB of pixels, and {folder} has {free / 1e6:,.1f} MB left",
            hint="free space, name another folder in MEDFLOW_HOME, or store fewer sizes",
        )

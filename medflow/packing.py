"""One chunk of images: decoded once, measured, written to the shards of every size.

This is what a worker process of ``ingest`` runs, so it imports neither pyarrow nor a dataset. A chunk is
finished when its ``rows`` file exists: shards are renamed into place first, that file last. The file names
the key of its chunk, a digest of everything that its bytes depend on; under another key it does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import PIL
from PIL import Image

from medflow import preprocess
from medflow.atomic import write_bytes
from medflow.errors import ArtifactError, ImageError
from medflow.facts import measure
from medflow.pixels import ShardWriter, check_shape
from medflow.records import PixelSpec, Record, Shard, digest_of

#: The libraries whose versions a chunk's bytes depend on.
DECODERS = (
    f"pillow {PIL.__version__}, opencv {cv2.__version__}, numpy {np.__version__}, "
    f"pydicom {version('pydicom')}, gdcm {version('python-gdcm')}"
)


class Item(Record):
    """One image to pack; paths are relative to the data root."""

    image_id: str
    path: str
    mask_path: str | None


class Plan(Record):
    """What holds for every chunk of one ingest."""

    source: str
    """Digest of the Source."""
    code: str
    """Digest of the code that packs: a chunk of edited code is never continued."""
    decoders: str = DECODERS
    specs: tuple[PixelSpec, ...]
    masks: bool
    max_pixels: int


class Chunk(Record):
    number: int
    items: tuple[Item, ...]

    def key(self, plan: Plan) -> str:
        return digest_of([plan.digest(), self.digest()])


class Facts(Record):
    """What was found of one image; fields as in ``MANIFEST_COLUMNS``."""

    image_id: str
    sha256: str | None = None
    bytes: int | None = None
    mode: str | None = None
    width: int | None = None
    height: int | None = None
    mean: float | None = None
    std: float | None = None
    blur: float | None = None
    phash: str | None = None
    mask_width: int | None = None
    mask_height: int | None = None
    mask_fraction: float | None = None
    error: str | None = None
    mask_error: str | None = None


class Packed(Record):
    """A finished chunk: shards in the order of the plan's specs, and the facts of every item."""

    key: str
    images: tuple[Shard, ...]
    masks: tuple[Shard, ...]
    facts: tuple[Facts, ...]


def pack(chunk: Chunk, plan: Plan, data: Path, folder: Path) -> None:
    """Read the chunk's files below ``data`` and write its shards and rows file below ``folder``.

    A file that cannot be decoded becomes Facts with an ``error`` and no row in any shard. Raises OSError
    where ``folder`` cannot be written.
    """
    with ExitStack() as stack:
        sinks = [_Sink(stack, folder, chunk.number, spec, plan) for spec in plan.specs]
        facts = tuple(_pack_item(item, plan, data, sinks) for item in chunk.items)
        packed = Packed(
            key=chunk.key(plan),
            images=tuple(sink.images.finish() for sink in sinks),
            masks=tuple(sink.masks.finish() for sink in sinks if sink.masks),
            facts=facts,
        )
    write_bytes(_rows_file(folder, chunk), packed.model_dump_json().encode())


def finished(chunk: Chunk, plan: Plan, folder: Path) -> Packed | None:
    """The chunk as it was packed before, or None where it has to be packed (again)."""
    path = _rows_file(folder, chunk)
    if not path.exists():
        return None
    try:
        packed = Packed.model_validate_json(path.read_text())
        for spec, shard in zip(plan.specs, packed.images, strict=True):
            check_shape(folder / shard.path, shard, (spec.height, spec.width, spec.channels))
        for spec, shard in zip(plan.specs, packed.masks, strict=plan.masks):
            check_shape(folder / shard.path, shard, (spec.height, spec.width))
    except (ValueError, ArtifactError):
        return None
    return packed if packed.key == chunk.key(plan) else None


def _rows_file(folder: Path, chunk: Chunk) -> Path:
    return folder / f"rows-{chunk.number:05d}.json"


class _Sink:
    """Where one size of a chunk is written."""

    def __init__(self, stack: ExitStack, folder: Path, number: int, spec: PixelSpec, plan: Plan) -> None:
        name = f"{spec.height}x{spec.width}/{{kind}}-{number:05d}.npy"
        frame = (spec.height, spec.width)
        self.spec = spec
        self.images = stack.enter_context(ShardWriter(folder, name.format(kind="images"), (*frame, spec.channels)))
        self.masks = None
        if plan.masks:
            self.masks = stack.enter_context(ShardWriter(folder, name.format(kind="masks"), frame))

    def append(self, image: Image.Image, mask: Image.Image | None) -> None:
        self.images.append(preprocess.fit(image, self.spec))
        if self.masks and mask is not None:
            self.masks.append(preprocess.fit_mask(mask, self.spec, image_size=image.size))
        elif self.masks:
            self.masks.append(np.zeros((self.spec.height, self.spec.width), dtype=np.uint8))


def _pack_item(item: Item, plan: Plan, data: Path, sinks: Sequence[_Sink]) -> Facts:
    facts: dict[str, object] = {"image_id": item.image_id}
    try:
        raw = _read_file(data, item.path)
        facts |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        original = preprocess.open_image(raw, max_pixels=plan.max_pixels)
        facts["mode"] = original.mode
        image = preprocess.convert(preprocess.upright(original), plan.specs[0].channels)
    except ImageError as error:
        return Facts.model_validate(facts | {"error": error.message})
    facts |= measure(image.convert("L")).model_dump()
    mask = None
    if plan.masks and item.mask_path is not None:
        try:
            mask = preprocess.read(_read_file(data, item.mask_path), 1, max_pixels=plan.max_pixels)
            facts |= _mask_facts(mask)
        except ImageError as error:
            facts["mask_error"] = error.message
    for sink in sinks:
        sink.append(image, mask)
    return Facts.model_validate(facts)


def _mask_facts(mask: Image.Image) -> dict[str, object]:
    share = np.count_nonzero(np.asarray(mask) > preprocess.MASK_ABOVE) / (mask.width * mask.height)
    return {"mask_width": mask.width, "mask_height": mask.height, "mask_fraction": share}


def _read_file(data: Path, path: str) -> bytes:
    """Bytes of a file below the data root. Messages name no absolute path, so they are the same everywhere."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ImageError(f"its path {path!r} leaves the data folder", hint="list paths below the data folder only")
    try:
        return (data / relative).read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", hint="check that the file is there") from error

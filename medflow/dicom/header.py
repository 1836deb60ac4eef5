"""Opening a DICOM file (PS3.10): the elements that are asked for, within bounds that a hostile file cannot leave."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medflow.errors import ImageError

#: Everything before the pixels must lie in so many bytes.
HEADER_BYTES = 2 * 2**20
#: Sequence items in a header: pydicom makes an object of each, and 2 MiB of empty ones would take eight seconds.
MOST_ITEMS = 10_000
#: What a deflated file may grow to.
INFLATED_BYTES = 256 * 2**20
PREAMBLE = 132
SYNTAX = 0x00020010
PIXELS = 0x7FE00010

# pydicom's warnings quote values. What is wrong with a file is told by ImageError.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom\b.*")
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Body:
    """What follows the file's meta information, inflated."""

    data: bytes
    syntax: UID
    """Transfer syntax of ``data``; a deflated one became Explicit VR Little Endian."""

    @property
    def is_little_endian(self) -> bool:
        return self.syntax != ExplicitVRBigEndian

    @property
    def is_implicit(self) -> bool:
        return self.syntax == ImplicitVRLittleEndian


def body_of(data: bytes) -> Body:
    """A whole file without preamble and meta information. Raises ImageError where it is no DICOM file."""
    syntax, rest = _split(data)
    if syntax == DeflatedExplicitVRLittleEndian:
        return Body(_inflated(rest), ExplicitVRLittleEndian)
    return Body(rest, syntax)


def head_of(data: bytes) -> Body:
    """Likewise of a file's first bytes, for its header alone. Raises ImageError."""
    syntax, rest = _split(data)
    if syntax == DeflatedExplicitVRLittleEndian:
        try:
            return Body(zlib.decompressobj(-zlib.MAX_WBITS).decompress(rest, HEADER_BYTES), ExplicitVRLittleEndian)
        except zlib.error as error:
            raise broken("it cannot be inflated") from error
    return Body(rest, syntax)


def _split(data: bytes) -> tuple[UID, bytes]:
    """Transfer syntax, and what follows the meta information. Raises ImageError."""
    if data[PREAMBLE - 4 : PREAMBLE] != b"DICM":
        raise ImageError("it is no DICOM file: DICM is not at byte 128", hint="save it as a DICOM file (PS3.10)")
    stream = BytesIO(data[: PREAMBLE + HEADER_BYTES])
    stream.seek(PREAMBLE)
    try:
        meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2, specific_tags=[SYNTAX])
        return UID(str(meta[SYNTAX].value)), data[stream.tell() :]
    except Exception as error:
        raise broken("its meta information cannot be read") from error


def elements(body: Body, tags: Iterable[int]) -> Dataset:
    """The elements ``tags`` that lie before the pixel data; no other value is parsed.

    Raises ImageError where the pixel data does not start within ``HEADER_BYTES``.
    """
    return _read(body, tags, up_to=PIXELS)[0]


def with_pixels(body: Body, tags: Iterable[int]) -> Dataset:
    """Likewise, with the pixel data, ready for ``pydicom.pixels``. Raises ImageError where there is none."""
    wanted = tuple(tags)
    _, start = _read(body, wanted, up_to=PIXELS)
    if start is None:
        raise ImageError("it holds no pixel data", hint="leave reports and other objects without pixels out")
    try:
        found = read_dataset(
            BytesIO(body.data),
            body.is_implicit,
            body.is_little_endian,
            stop_when=lambda tag, *_: tag > PIXELS,
            specific_tags=[*wanted, PIXELS],
        )
    except Exception as error:
        raise broken("its pixel data cannot be read") from error
    found.set_original_encoding(body.is_implicit, body.is_little_endian)
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = body.syntax
    return found


def broken(what: str) -> ImageError:
    """The file cannot be used. Never the words of a library, which may quote the file."""
    return ImageError(f"the DICOM file is cut short or broken: {what}", hint="replace the file by a complete copy")


_BARE = "export the image without its private elements"


def _read(body: Body, tags: Iterable[int], *, up_to: int) -> tuple[Dataset, int | None]:
    """The elements before ``up_to``, and where it starts; None where it is not there."""
    reached: list[int] = []

    def stop(tag: int, vr: str | None, length: int) -> bool:
        if tag >= up_to:
            reached.append(tag)
        return bool(reached)

    head = body.data[:HEADER_BYTES]
    if head.count(b"\xfe\xff\x00\xe0" if body.is_little_endian else b"\xff\xfe\xe0\x00") > MOST_ITEMS:
        raise ImageError(f"its header has more than {MOST_ITEMS} sequence items", hint=_BARE)
    stream = BytesIO(head)
    try:
        found = read_dataset(stream, body.is_implicit, body.is_little_endian, stop_when=stop, specific_tags=[*tags])
    except Exception as error:
        raise broken("its header cannot be read") from error
    if not reached and len(body.data) > HEADER_BYTES:
        raise ImageError(
            f"no pixel data starts within its first {HEADER_BYTES // 2**20} MiB",
            hint=_BARE,
        )
    found.set_original_encoding(body.is_implicit, body.is_little_endian)
    return found, stream.tell() if reached and reached[-1] == up_to else None


def _inflated(data: bytes) -> bytes:
    """A raw deflate stream (PS3.5 A.5), up to ``INFLATED_BYTES``."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = stream.decompress(data, INFLATED_BYTES)
    except zlib.error as error:
        raise broken("it cannot be inflated") from error
    if len(found) >= INFLATED_BYTES:
        raise ImageError(
            f"it inflates to more than {INFLATED_BYTES // 2**20} MiB", hint="save the image uncompressed or as JPEG-LS"
        )
    if not stream.eof:
        raise broken("its deflated part has no end")
    return found

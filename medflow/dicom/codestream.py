"""What a compressed frame says of its own size, looked at before a decoder believes it."""

from __future__ import annotations

import struct
from itertools import pairwise

from pydicom.uid import UID, JPEG2000TransferSyntaxes, RLELossless

from medflow.dicom.header import broken
from medflow.errors import ImageError

END = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000."""
#: Start of frame, ITU-T T.81 table B.1 and (0xF7) T.87; C4, C8 and CC are no frames.
FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
#: Markers without a length.
BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def check(frame: bytes, syntax: UID, rows: int, columns: int, samples: int) -> None:
    """Raises ImageError where a frame is of another size, has no end, or unpacks to more than its pixels."""
    if syntax == RLELossless:
        _refuse_packbits_bomb(frame, rows * columns)
        return
    try:
        found = _j2k_size(frame) if syntax in JPEG2000TransferSyntaxes else _jpeg_size(frame)
    except (struct.error, IndexError) as error:
        raise broken("its compressed pixels have no header") from error
    if found != (rows, columns, samples):
        raise ImageError(
            "its compressed pixels are of another size than its header declares", hint="export the image again"
        )
    if END not in frame.rstrip(b"\0")[-3:]:  # some pad with 0xFF
        raise broken("its compressed pixels have no end")


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of the first start of frame."""
    place = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in FRAMES:
            rows, columns, components = struct.unpack_from(">HHB", frame, place + 5)
            return rows, columns, components
        fill = marker == 0xFF
        place += 1 if fill else 2 if marker in BARE else 2 + struct.unpack_from(">H", frame, place + 2)[0]
    raise IndexError(place)


def _j2k_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of the SIZ segment, ITU-T T.800 A.5.1, which comes first."""
    if not frame.startswith(b"\xff\x4f\xff\x51"):
        raise IndexError(0)
    right, lower, left, upper = struct.unpack_from(">4I", frame, 8)
    return lower - upper, right - left, struct.unpack_from(">H", frame, 40)[0]


def _refuse_packbits_bomb(frame: bytes, pixels: int) -> None:
    """Two bytes of RLE (PS3.5 G) can stand for 128: each segment is measured before it is unpacked."""
    header = struct.unpack("<16L", frame[:64].ljust(64, b"\0"))
    bounds = [*header[1 : 1 + min(header[0], 15)], len(frame)]
    for start, end in pairwise(bounds):
        if _packbits_size(frame[start:end], 2 * pixels + 64) > 2 * pixels + 64:
            raise ImageError("its RLE pixels unpack to more than its header declares", hint="export the image again")


def _packbits_size(segment: bytes, enough: int) -> int:
    """Bytes that a PackBits segment unpacks to; stops once they are more than ``enough``."""
    place = size = 0
    while place < len(segment) and size <= enough:
        count = segment[place]
        size += 0 if count == 128 else 257 - count if count > 128 else count + 1
        place += 1 if count == 128 else 2 if count > 128 else count + 2
    return size

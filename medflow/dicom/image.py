"""DICOM pixels as an 8-bit picture, the same for ingest and serving.

What is on the disk becomes what a viewer shows: stored values → Modality LUT or rescale → VOI LUT or the first window →
0 to 255, turned over for MONOCHROME1. One frame; more are refused. See ``medflow.dicom.gray`` for the arithmetic.

==============================  ============================================================
transfer syntax                 decoded by
==============================  ============================================================
uncompressed, either endian     pydicom
deflated                        zlib, within ``header.INFLATED_BYTES``
JPEG baseline, extended 8 bits  Pillow
JPEG 2000                       Pillow
JPEG lossless, JPEG-LS          gdcm, in a process of its own
RLE                             pydicom
==============================  ============================================================

The size in the header bounds the work, so a compressed frame that declares another one is refused unread, as is one
without its end marker: decoders answer those with gray.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import as_pixel_options, get_decoder

from medflow.dicom import codestream, gray, isolated
from medflow.dicom.header import Body, body_of, broken, elements, head_of, with_pixels
from medflow.errors import ImageError

GDCM = "gdcm"
#: Transfer syntax → pydicom's decoding plugin, by name: which one answers must not depend on what is installed.
PLUGINS = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEG2000Lossless: "pillow",
    uid.JPEG2000: "pillow",
    uid.JPEGLossless: GDCM,
    uid.JPEGLosslessSV1: GDCM,
    uid.JPEGLSLossless: GDCM,
    uid.JPEGLSNearLossless: GDCM,
    uid.RLELossless: "pydicom",
}
GRAY = ("MONOCHROME1", "MONOCHROME2")
COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"

#: Bytes a pixel at the peak of decoding, the file's own copy among them, and what gdcm's process takes besides.
A_GRAY_PIXEL, A_COLOR_PIXEL, A_SAMPLE_IN_GDCM = 10, 18, 8

SAMPLES, PHOTOMETRIC, PLANAR, FRAMES, ROWS, COLUMNS = (
    0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011,
)  # fmt: skip
ALLOCATED, STORED, HIGH_BIT, SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
DESCRIBING = (SAMPLES, PHOTOMETRIC, PLANAR, FRAMES, ROWS, COLUMNS, ALLOCATED, STORED, HIGH_BIT, SIGNED)


@dataclass(frozen=True)
class Shape:
    """What the header says of the pixels. It is believed only after ``_shape`` has looked."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    """Bits: 8 or 16."""
    stored: int
    signed: bool


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture in a DICOM file, mode L or RGB, at its own size.

    Raises ImageError where it has none, more than one, more than ``max_pixels`` pixels (nothing is decoded then), or
    one that is cut short, broken, or encoded in a way that the module's table lacks.
    """
    body = body_of(data)
    if body.syntax not in PLUGINS:
        known = body.syntax.name if body.syntax in uid.AllTransferSyntaxes else "nobody knows what"
        raise ImageError(f"its pixels are encoded as {known}", hint="save it uncompressed, or as JPEG or JPEG-LS")
    shape = _shape(elements(body, DESCRIBING), max_pixels)
    found = with_pixels(body, (*DESCRIBING, *gray.TAGS, *gray.PALETTE_TAGS))
    try:
        pixels = _decoded(found, body, shape)
        return Image.fromarray(_to_8_bits(pixels, found, body, shape))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # whatever a decoder raises on hostile bytes, and never its words
        raise broken("its pixels cannot be decoded") from error


def bytes_to_decode(data: bytes, *, max_pixels: int) -> int:
    """Memory that ``open_image`` takes at the most. Raises ImageError where it would for the header."""
    head = head_of(data)
    shape = _shape(elements(head, DESCRIBING), max_pixels)
    a_pixel = A_GRAY_PIXEL if shape.photometric in GRAY else A_COLOR_PIXEL
    if PLUGINS.get(head.syntax) == GDCM:
        a_pixel += shape.samples * A_SAMPLE_IN_GDCM
    return shape.rows * shape.columns * a_pixel


def _shape(found: Dataset, max_pixels: int) -> Shape:
    """Raises ImageError for what cannot become one 8-bit picture."""
    shape = Shape(
        rows=_whole(found, ROWS),
        columns=_whole(found, COLUMNS),
        samples=_whole(found, SAMPLES, 1),
        photometric=_word(found, PHOTOMETRIC),
        allocated=_whole(found, ALLOCATED),
        stored=_whole(found, STORED),
        signed=_whole(found, SIGNED, 0) == 1,
    )
    frames = _whole(found, FRAMES, 1)
    if frames > 1:
        raise ImageError(f"it holds {frames} frames, expected one", hint="export the frame to be read as a file")
    if shape.rows < 1 or shape.columns < 1:
        raise ImageError("its header declares no rows or no columns", hint="replace the file by a complete copy")
    if shape.rows * shape.columns > max_pixels:
        raise ImageError(
            f"its header declares {shape.columns} x {shape.rows} pixels, more than the {max_pixels} allowed",
            hint="scale the image down, or raise ingest.max_pixels if you trust its source",
        )
    _refuse_other_values(shape, _whole(found, HIGH_BIT, shape.stored - 1))
    return shape


def _refuse_other_values(shape: Shape, high_bit: int) -> None:
    samples = 3 if shape.photometric in COLOR else 1
    if shape.photometric not in (*GRAY, *COLOR, PALETTE) or shape.samples != samples:
        raise ImageError(
            f"its pixels have {shape.samples} samples in a photometric interpretation that does not fit",
            hint=f"expected one of {', '.join((*GRAY, PALETTE, *COLOR))}",
        )
    if shape.allocated not in (8, 16) or not 1 <= shape.stored <= shape.allocated or high_bit != shape.stored - 1:
        raise ImageError(
            f"its values have {shape.stored} of {shape.allocated} bits, the highest being bit {high_bit}",
            hint="expected 8 or 16 bits allocated, and the stored bits at their low end",
        )


def _decoded(found: Dataset, body: Body, shape: Shape) -> np.ndarray:
    """Stored values, (rows, columns) or RGB (rows, columns, 3). Raises ImageError, and what decoders raise."""
    if body.syntax.is_encapsulated:
        frame = next(generate_frames(found.PixelData, number_of_frames=1))
        codestream.check(frame, body.syntax, shape.rows, shape.columns, shape.samples)
    plugin = PLUGINS[body.syntax]
    if plugin == GDCM:
        answer = isolated.CHILD.decode(found.PixelData, body.syntax, as_pixel_options(found))
        if answer is None:
            raise broken("its pixels cannot be decoded")
        pixels = answer
    else:
        pixels, _ = get_decoder(body.syntax).as_array(found, index=0, decoding_plugin=plugin)
    expected = (shape.rows, shape.columns, 3) if shape.samples == 3 else (shape.rows, shape.columns)
    if pixels.shape != expected:
        raise broken("its pixels are not of the size that its header declares")
    return pixels


def _to_8_bits(pixels: np.ndarray, found: Dataset, body: Body, shape: Shape) -> np.ndarray:
    """uint8 (rows, columns) or (rows, columns, 3)."""
    if shape.photometric == PALETTE:
        tables = gray.palette(found, body, shape.stored)
        return np.stack([gray.look_up(table, pixels) for table in tables], axis=-1)
    if shape.samples == 3:
        return gray.look_up(gray.full_range(shape.stored), pixels)
    table = gray.table(found, body, shape.stored, signed=shape.signed)
    return gray.look_up(255 - table if shape.photometric == "MONOCHROME1" else table, pixels)


def _whole(found: Dataset, tag: int, absent: int = 0) -> int:
    try:
        value = found[tag].value if tag in found else None
        return absent if value is None else int(value)
    except Exception as error:
        raise broken(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is no number") from error


def _word(found: Dataset, tag: int) -> str:
    try:
        return str(found[tag].value).strip(" \0").upper() if tag in found else ""
    except Exception as error:
        raise broken(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) cannot be read") from error

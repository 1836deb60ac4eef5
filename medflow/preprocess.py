"""From raw bytes to stored pixels: the one function that ingest and serving share.

``to_pixels`` decodes strictly and brings an image to its ``PixelSpec``; nothing resizes later, and ``medflow.masks``
alone goes the way back, from a model's mask to the image that was sent. Only Pillow decodes, because OpenCV
answers a truncated file with gray rows and no error. DICOM files are images like any other: ``medflow.dicom``
gives them their 8 bits, by rescale, window and bits stored.

How values become 8 bits, whatever the file:

==================  ==================================================================================
mode                rule
==================  ==================================================================================
1, L, RGB           as they are; 1 becomes 0 and 255
P, PA               through the palette (a mask with an inverted index comes out right)
LA, RGBA            alpha is ignored, what lies under it counts
CMYK, YCbCr, HSV    Pillow's conversion to RGB
I;16, I             0..65535 → 0..255, rounded: ``(v + 128) // 257``, so ``v * 257`` comes back as v.
                    Values outside are refused. (Pillow itself reads 16-bit RGB by its high byte.)
F                   0..1 times 255, or 0..255 as they are, or 0..65535 as 16 bits; anything else is refused
colour → 1 channel  ITU-R 601 luma, as Pillow's ``convert("L")``
==================  ==================================================================================

No rule looks at one image's own minimum and maximum: that would make a blank image look busy and
brightness incomparable between images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from medflow.errors import ImageError
from medflow.records import PixelSpec

MAX_PIXELS = 100_000_000
#: Formats that may be opened. Left out among others: EPS, which Pillow hands to an interpreter, and
#: JPEG 2000, whose decoder answers a truncated file with a coarser image and no error.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")
#: The box average leaves at least this factor to the antialiased bilinear filter: 50 dB against the
#: filter alone on real radiographs at a third of its time; 1 would save little more and end at 45 dB.
REDUCING_GAP = 2.0
#: A mask pixel is set where its gray value is above this.
MASK_ABOVE = 127
#: Values of more than 8 bits become 8 in bands of about so many, so that beside the image little is held.
BAND = 2**20


@dataclass(frozen=True)
class Fitted:
    """An image in a model's frame, and the size from which it came there."""

    pixels: np.ndarray
    """uint8 (height, width, channels) of the spec."""
    size: tuple[int, int]
    """Width and height of the image itself, upright."""


def to_pixels(data: bytes, spec: PixelSpec, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file as the pixels that a model sees.

    Returns uint8 (height, width, channels) of ``spec``. Raises ImageError, see ``read``.
    """
    return to_fitted(data, spec, max_pixels=max_pixels).pixels


def to_fitted(data: bytes, spec: PixelSpec, *, max_pixels: int = MAX_PIXELS) -> Fitted:
    """``to_pixels`` with the image's own size, for an answer in the image's frame. Raises ImageError, see ``read``."""
    image = read(data, spec.channels, max_pixels=max_pixels)
    return Fitted(pixels=fit(image, spec), size=image.size)


def decode(data: bytes, channels: Literal[1, 3], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file at its own size, upright: uint8 (h, w, channels). Raises ImageError, see ``read``."""
    return as_array(read(data, channels, max_pixels=max_pixels))


def read_mask(
    data: bytes,
    spec: PixelSpec,
    *,
    image_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """A mask file in step with its image: uint8 (height, width) of ``spec``, 0 or 1.

    A pixel is set where its gray value is above 127. ``image_size`` is the (width, height) of the image
    that the mask lies on; it matters with ``fit="pad"``, where mask and image must share one frame
    although their own sizes differ. Raises ImageError, see ``read``.
    """
    return fit_mask(read(data, 1, max_pixels=max_pixels), spec, image_size=image_size)


# -- decoding ------------------------------------------------------------------------------------


def read(data: bytes, channels: Literal[1, 3], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a whole file, upright by its EXIF orientation, as mode L (1 channel) or RGB (3).

    Raises ImageError where the bytes are no image of ``FORMATS``, the file is cut short or broken, its
    header declares more than ``max_pixels`` (nothing is decoded then), or its values have no stated range.
    """
    return convert(upright(open_image(data, max_pixels=max_pixels)), channels)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame, fully decoded, in the file's own mode and orientation. Raises ImageError.

    A DICOM file comes as mode L or RGB, and is refused where it has more than one frame.
    """
    if is_dicom(data):
        from medflow.dicom.image import open_image as open_dicom  # pydicom takes a quarter of a second to import

        return open_dicom(data, max_pixels=max_pixels)
    image = open_header(data, max_pixels=max_pixels)
    try:
        image.load()
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # whatever a decoder raises on hostile bytes, the image is not usable
        raise ImageError(
            f"the {image.format} file is cut short or broken: {_words(error)}",
            hint="replace the file by a complete copy",
        ) from error
    return image


def is_dicom(data: bytes) -> bool:
    """By the mark of PS3.10, four letters after a preamble of 128 bytes."""
    return data[128:132] == b"DICM"


def upright(image: Image.Image) -> Image.Image:
    """Turn an image, in place, as its EXIF orientation says. Raises ImageError where the EXIF block is broken."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise ImageError(
            f"its EXIF block is broken: {_words(error)}", hint="save the image again without EXIF"
        ) from error
    return image


def convert(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """Bring any mode to 8-bit L (1 channel) or RGB (3), by the module's table. Raises ImageError."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise ImageError(
            f"its colour mode {image.mode} cannot be turned into {mode}", hint="save the image as gray or RGB"
        ) from error


def as_array(image: Image.Image) -> np.ndarray:
    """A mode L or RGB image as uint8 (h, w, 1 or 3), read-only where Pillow shares its memory."""
    array = np.asarray(image)
    return array[..., np.newaxis] if array.ndim == 2 else array


def open_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image of ``FORMATS`` of which only the header has been read. Raises ImageError, see ``read``."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"it is refused as a decompression bomb: {_words(error)}", hint=_SMALLER) from error
    except Exception as error:
        raise ImageError(
            f"these {len(data)} bytes are no image that can be opened",
            hint=f"expected one of {', '.join(FORMATS)}, or DICOM",
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"its header declares {width} x {height} pixels, more than the {max_pixels} allowed", hint=_SMALLER
        )
    return image


_SMALLER = "scale the image down, or raise ingest.max_pixels if you trust its source"


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Integers by the 16-bit rule, floats by their range; see the module's table. Mode L."""
    bands = [_band(image, rows) for rows in _bands(image.size)]
    low = float(np.min([values().min() for values in bands]))  # NaN fails every comparison below
    high = float(np.max([values().max() for values in bands]))
    found = Image.new("L", image.size)
    rule = _rule(low, high, floats=image.mode == "F")
    for rows, values in zip(_bands(image.size), bands, strict=True):
        found.paste(Image.fromarray(rule(values())), (0, rows.start))
    return found


def _bands(size: tuple[int, int]) -> Iterator[range]:
    """Rows from top to bottom."""
    width, height = size
    step = max(1, BAND // width)
    return (range(top, min(top + step, height)) for top in range(0, height, step))


def _band(image: Image.Image, rows: range) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(image.crop((0, rows.start, image.width, rows.stop)))


def _rule(low: float, high: float, *, floats: bool) -> Callable[[np.ndarray], np.ndarray]:
    """How values between ``low`` and ``high`` become uint8. Raises ImageError where they have no stated range."""
    if floats and low >= 0 and high <= 1:
        return lambda values: np.rint(values * 255).astype(np.uint8)
    if floats and low >= 0 and high <= 255:
        return lambda values: np.rint(values).astype(np.uint8)
    if low >= 0 and high <= 65535:
        return lambda values: ((np.rint(values).astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise ImageError(
        f"its values run from {low:g} to {high:g}, outside 0 to 65535", hint="save the image with 8 or 16 bits a value"
    )


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


# -- fitting -------------------------------------------------------------------------------------


def fit(image: Image.Image, spec: PixelSpec) -> np.ndarray:
    """Bring a mode L or RGB image to the frame of ``spec``: uint8 (height, width, channels).

    Shrinking is antialiased: a whole-number box average, then Pillow's bilinear filter, whose support
    grows with the factor. Enlarging is plain bilinear. Both are fixed-point, hence the same on any machine.
    """
    return as_array(_place(image, spec, image.size))


def fit_mask(image: Image.Image, spec: PixelSpec, *, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """Bring a mode L mask to the frame in which its image of ``image_size`` (width, height) lies: uint8 (h, w), 0 or 1.

    It is resized like the image and then cut at one half, so that its outline keeps its place.
    """
    binary = image.point(lambda value: 255 if value > MASK_ABOVE else 0)
    return (np.asarray(_place(binary, spec, image_size or image.size)) > MASK_ABOVE).astype(np.uint8)


def _place(image: Image.Image, spec: PixelSpec, frame_of: tuple[int, int]) -> Image.Image:
    if spec.fit == "stretch":
        return _resize(image, (spec.width, spec.height))
    left, top, width, height = inner_box(frame_of, spec)
    frame = Image.new(image.mode, (spec.width, spec.height))
    frame.paste(_resize(image, (width, height)), (left, top))
    return frame


def inner_box(size: tuple[int, int], spec: PixelSpec) -> tuple[int, int, int, int]:
    """Where in the frame an image of ``size`` lies: left, top, width, height.

    With ``pad`` the largest box of the same aspect ratio, at least one pixel, in the middle.
    """
    if spec.fit == "stretch":
        return 0, 0, spec.width, spec.height
    scale = min(spec.width / size[0], spec.height / size[1])
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (spec.width - width) // 2, (spec.height - height) // 2, width, height


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)

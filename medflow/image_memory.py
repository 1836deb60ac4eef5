"""How much memory an image takes on its way to pixels, told by its header before anything of it is decoded.

Formats differ by a factor of 17 a pixel: what a service allows is therefore counted in bytes and not in images.
Each figure is the measured peak of ``preprocess.to_fitted`` above what the process held before, with some air;
``tests/test_image_memory.py`` measures it again.
"""

from __future__ import annotations

from typing import Final

from PIL import Image

from medflow.preprocess import MAX_PIXELS, is_dicom, open_header

#: libwebp's decoder of animations keeps two canvases of four bytes a pixel beside Pillow's own two.
WEBP: Final = 17.0
#: A strip may hold the whole image, and lies in memory beside it.
TIFF: Final = 14.0
#: All coefficients are there before the first pixel is: two bytes for each of three or four channels.
PROGRESSIVE, PROGRESSIVE_CMYK = 10.5, 12.5
#: Pillow holds colour as four bytes a pixel, and for a moment what it was made from as well.
TWICE: Final = 10.0
PLAIN: Final = 5.25
#: What may say that an image lies on its side; it is held twice while it is turned.
TURNING = (b"Exif", b"eXIf", b"Raw profile", b"Orientation", b"com.adobe.xmp")
ONCE = ("1", "L", "P", "RGB", "I;16")


def bytes_to_decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> int:
    """Bytes at the most, at a time. Raises ImageError where ``preprocess.open_image`` would for the header."""
    if is_dicom(data):
        from medflow.dicom.image import bytes_to_decode as of_dicom  # pydicom takes a quarter of a second to import

        return of_dicom(data, max_pixels=max_pixels)
    image = open_header(data, max_pixels=max_pixels)
    return int(image.width * image.height * _a_pixel(image, data))


def _a_pixel(image: Image.Image, data: bytes) -> float:
    if image.format == "WEBP":
        return WEBP
    if image.format == "TIFF":
        return TIFF
    if image.format == "JPEG" and image.info.get("progressive"):
        return PROGRESSIVE_CMYK if image.mode == "CMYK" else PROGRESSIVE
    if image.mode not in ONCE or any(mark in data for mark in TURNING):
        return TWICE
    return PLAIN

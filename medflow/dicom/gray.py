"""From stored values to 8 bits, as a table over every value that can be stored (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5).

The whole way acts on each pixel alone, so it is worked out once for each of at most 65,536 stored values, exactly.
Tables are uint8 (2 ** bits stored,), indexed by the stored bits read as an unsigned number.

Where a file has neither VOI LUT nor window, the whole range that its bits can hold becomes 0 to 255, as for any
other 16-bit image (``medflow.preprocess``): the extremes of one image would make a blank one look busy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medflow.dicom.header import Body, broken
from medflow.errors import ImageError

INTERCEPT, SLOPE, MODALITY_LUT, VOI_LUT = 0x00281052, 0x00281053, 0x00283000, 0x00283010
CENTER, WIDTH, FUNCTION = 0x00281050, 0x00281051, 0x00281056
TAGS = (INTERCEPT, SLOPE, MODALITY_LUT, VOI_LUT, CENTER, WIDTH, FUNCTION)
DESCRIPTOR, DATA = 0x00283002, 0x00283006
#: Descriptor and data of red, green and blue.
PALETTES = ((0x00281101, 0x00281201), (0x00281102, 0x00281202), (0x00281103, 0x00281203))
PALETTE_TAGS = tuple(tag for pair in PALETTES for tag in pair)


@dataclass(frozen=True)
class Lut:
    """A look-up table of PS3.3 C.11.1.1: values below ``first`` take its first entry, values beyond its last."""

    entries: np.ndarray
    first: int
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        return self.entries[places].astype(np.float64)


def table(found: Dataset, body: Body, stored: int, *, signed: bool) -> np.ndarray:
    """8-bit grays of every stored value, MONOCHROME2. Raises ImageError for elements that cannot be meant."""
    values, low, high = _modality(found, body, stored_values(stored, signed=signed))
    if found.get(VOI_LUT):
        lut = _lut(found[VOI_LUT].value[0], DESCRIPTOR, DATA, body)
        return eight_bits(lut(values) / (2**lut.bits - 1))
    center, width = _number(found, CENTER), _number(found, WIDTH)
    if center is not None and width is not None:
        return eight_bits(window(values, center, width, _function(found)))
    return eight_bits((values - low) / (high - low))


def stored_values(stored: int, *, signed: bool) -> np.ndarray:
    """What each pattern of ``stored`` bits means, float64 (2 ** stored,)."""
    patterns = np.arange(2**stored)
    return np.where(patterns >= 2 ** (stored - 1), patterns - 2**stored, patterns) * 1.0 if signed else patterns * 1.0


def window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """0 to 1 by PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID) or C.11.2.1.3.2 (LINEAR_EXACT).

    Raises ImageError for a width that the standard forbids, and for another function.
    """
    narrowest = {"LINEAR": 1.0, "LINEAR_EXACT": math.ulp(0.0), "SIGMOID": math.ulp(0.0)}
    if function not in narrowest or width < narrowest[function]:
        raise ImageError(
            f"its window has the width {width:g} and a VOI LUT function that is none of {', '.join(narrowest)}, "
            f"or is too narrow for it",
            hint="export the image with a window, or without one",
        )
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # the standard's limit: a step
        return (values > center) * 1.0
    return np.clip((values - center) / width + 0.5, 0, 1)


def full_range(stored: int) -> np.ndarray:
    """The range of ``stored`` bits as 0 to 255."""
    return eight_bits(np.arange(2**stored) / (2**stored - 1))


def palette(found: Dataset, body: Body, stored: int) -> tuple[np.ndarray, ...]:
    """Tables of red, green and blue (PS3.3 C.7.6.3.1.5). Raises ImageError where one is missing."""
    luts = [_lut(found, descriptor, data, body) for descriptor, data in PALETTES]
    values = stored_values(stored, signed=False)
    return tuple(eight_bits(lut(values) / (2**lut.bits - 1)) for lut in luts)


def eight_bits(share: np.ndarray) -> np.ndarray:
    """0 to 1 as uint8."""
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """uint8 of the shape of ``pixels``, row by row, since numpy's own index would take eight bytes a pixel.

    Bits above the stored ones do not count: old files keep overlays there.
    """
    found = np.empty(pixels.shape, dtype=np.uint8)
    for row, values in zip(found, pixels, strict=True):
        row[...] = table[values.astype(np.int64) & (len(table) - 1)]
    return found


def _modality(found: Dataset, body: Body, values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values after the Modality LUT or rescale (PS3.3 C.11.1), and the range that they can lie in."""
    if found.get(MODALITY_LUT):
        lut = _lut(found[MODALITY_LUT].value[0], DESCRIPTOR, DATA, body)
        return lut(values), 0.0, float(2**lut.bits - 1)
    slope, intercept = _number(found, SLOPE), _number(found, INTERCEPT)
    if slope is None or intercept is None:
        slope, intercept = 1.0, 0.0
    if slope == 0:
        raise ImageError("its rescale slope is 0", hint="export the image again, or without a rescale")
    scaled = values * slope + intercept
    return scaled, float(scaled.min()), float(scaled.max())


def _lut(item: Dataset, descriptor: int, data: int, body: Body) -> Lut:
    """Raises ImageError where the descriptor (entries, first value, bits) does not fit the data."""
    if descriptor not in item or data not in item:
        raise ImageError("a look-up table of it has no descriptor or no data", hint="export the image with its tables")
    length, first, bits = (int(part) for part in item[descriptor].value)
    raw = item[data].value
    entries: np.ndarray
    length = length or 2**16
    if isinstance(raw, bytes) and len(raw) in (length, length + length % 2):
        entries = np.frombuffer(raw, dtype=np.uint8)
    elif isinstance(raw, bytes):
        entries = np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<u2" if body.is_little_endian else ">u2")
    else:
        entries = np.asarray(raw, dtype=np.int64).reshape(-1) & 0xFFFF
    if not 1 <= length <= len(entries) or not 8 <= bits <= 16:
        raise broken("a look-up table does not fit its descriptor")
    return Lut(entries[:length], first, bits)


def _number(found: Dataset, tag: int) -> float | None:
    """The first value of a decimal string; None where there is none. Raises ImageError."""
    value = found[tag].value if tag in found else None
    if value is None or value == "":
        return None
    number = float(value if isinstance(value, str | int | float) else value[0])
    if not math.isfinite(number):
        raise ImageError("a number of its window or rescale is not finite", hint="export the image again")
    return number


def _function(found: Dataset) -> str:
    value = found[FUNCTION].value if FUNCTION in found else None
    return str(value).strip(" \0").upper() if value else "LINEAR"

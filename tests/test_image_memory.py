"""What an image may take on its way to pixels is told before it is decoded, and is not less than what it takes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import dicomfiles
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from medflow.errors import ImageError
from medflow.image_memory import bytes_to_decode

SIDE = 2500
#: Of a process that decodes, where it is the allocator's and not the image's.
NOISE_BYTES = 6 * 2**20
GRAY = (np.add.outer(np.arange(SIDE), np.arange(SIDE)) // 37 % 256).astype(np.uint8)
DEEP = (np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 5 % 65536).astype(np.uint16)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY.T], axis=-1)


def image_of(mode: str) -> Image.Image:
    if mode in ("I;16", "I"):
        return Image.fromarray(DEEP.astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "F":
        return Image.fromarray(GRAY.astype(np.float32) / 255)
    return Image.fromarray(COLOR if mode in ("RGB", "RGBA", "CMYK") else GRAY).convert(mode)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


#: As many as Pillow writes: format, mode, options.
KINDS = [
    *(("PNG", mode, {}) for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16")),
    ("PNG", "RGB", {"exif": turned()}),
    *(("JPEG", mode, {"progressive": early}) for mode in ("L", "RGB", "CMYK") for early in (False, True)),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "L", {"exif": turned()}),
    *(("TIFF", mode, {"compression": "tiff_lzw", "tiffinfo": {278: SIDE}}) for mode in ("L", "RGB")),
    *(("TIFF", mode, {}) for mode in ("RGB", "I;16", "I", "F")),
    *(("WEBP", mode, {"lossless": True, "method": 0}) for mode in ("RGB", "RGBA")),
    ("BMP", "RGB", {}),
    ("GIF", "P", {}),
    ("PPM", "RGB", {}),
]

PEAK = """
import sys
from pathlib import Path
from medflow.preprocess import to_fitted
from medflow.records import PixelSpec
import medflow.dicom.image, numpy
from medflow.dicom import isolated

def kib(name, process="self"):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

spec = PixelSpec(height=64, width=64, channels=int(sys.argv[2]), fit="stretch")
small, data = Path(sys.argv[3]).read_bytes(), Path(sys.argv[1]).read_bytes()
to_fitted(small, spec)
child = isolated.CHILD._process
children = kib("VmRSS", child.pid) if child else 0
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
to_fitted(data, spec)
print((kib("VmHWM") - before) * 1024 + ((kib("VmHWM", child.pid) - children) * 1024 if child else 0))
"""


def peak_of(large: bytes, small: bytes, channels: int, folder: Path) -> int:
    """Bytes that decoding takes, in a process that has decoded a small image of the kind before."""
    paths = [folder / "large", folder / "small"]
    for path, data in zip(paths, (large, small), strict=True):
        path.write_bytes(data)
    words = [sys.executable, "-c", PEAK, str(paths[0]), str(channels), str(paths[1])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def saved(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak of memory")


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS, ids=lambda value: str(value)[:24])
def test_no_image_takes_more_than_is_told(kind: str, mode: str, options: dict[str, object], tmp_path: Path) -> None:
    image = image_of(mode)
    large, small = saved(image, kind, options), saved(image.crop((0, 0, 64, 64)), kind, options)
    told = bytes_to_decode(large)
    peak = max(peak_of(large, small, channels, tmp_path) for channels in (1, 3))
    print(f"{peak / SIDE**2:.2f} of {told / SIDE**2:.2f} bytes a pixel")
    assert peak < told + NOISE_BYTES


@pytest.mark.parametrize("how", ["gray", "color", *dicomfiles.LOSSLESS])
def test_no_dicom_file_takes_more_than_is_told(how: str, tmp_path: Path) -> None:
    files = [dicom(how, side) for side in (SIDE, 64)]
    told, peak = bytes_to_decode(files[0]), peak_of(files[0], files[1], 1, tmp_path)
    print(f"{peak / SIDE**2:.2f} of {told / SIDE**2:.2f} bytes a pixel")
    assert peak < told + NOISE_BYTES


def dicom(how: str, side: int) -> bytes:
    if how == "color":
        return dicomfiles.file(dicomfiles.dataset(COLOR[:side, :side], PhotometricInterpretation="RGB"))
    made = dicomfiles.dataset(DEEP[:side, :side])
    if how == "deflated":  # gdcm aborts on a large one
        return dicomfiles.file(made, uid.DeflatedExplicitVRLittleEndian)
    plain = dicomfiles.file(made)
    return plain if how == "gray" else dicomfiles.transcoded(plain, dicomfiles.LOSSLESS[how])


def test_what_is_told_grows_with_the_image() -> None:
    image = image_of("L")
    sizes = [bytes_to_decode(saved(image.crop((0, 0, side, side)), "PNG", {})) for side in (100, 200)]
    assert sizes[1] == 4 * sizes[0]


def test_a_header_that_is_refused_is_refused_here() -> None:
    with pytest.raises(ImageError, match="more than the 10 allowed"):
        bytes_to_decode(saved(image_of("L"), "PNG", {}), max_pixels=10)
    with pytest.raises(ImageError, match="no image"):
        bytes_to_decode(b"nothing")


KEPT = """
import sys, threading
from pathlib import Path
from medflow.allocator import give_back_large_blocks
from medflow.preprocess import to_fitted
from medflow.records import PixelSpec

def kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

if sys.argv[2] == "given back":
    assert give_back_large_blocks()
spec, data = PixelSpec(height=64, width=64, channels=1, fit="stretch"), Path(sys.argv[1]).read_bytes()
before = kib()
for _ in range(3):
    threads = [threading.Thread(target=to_fitted, args=(data, spec)) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print((kib() - before) * 1024)
"""


def test_a_process_does_not_keep_the_memory_of_images_that_it_has_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(saved(Image.new("RGB", (4000, 4000)), "PNG", {}))
    kept = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", KEPT, str(path), how], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        kept[how] = int(done.stdout)
    print(kept)
    assert kept["given back"] < 8 * 2**20

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from medflow import masks
from medflow.errors import ImageError
from medflow.masks import draw_mask, mask_png, unfit_mask
from medflow.preprocess import decode, fit, read, read_mask, to_pixels
from medflow.records import PixelSpec

SAMPLES = Path(os.environ.get("MEDFLOW_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
ODDITIES = SAMPLES / "extras" / "oddities"
needs_samples = pytest.mark.skipif(not ODDITIES.is_dir(), reason="real samples are not here")

SIDES = st.integers(1, 90)


def spec(height: int = 32, width: int | None = None, channels: int = 1, fit: str = "stretch") -> PixelSpec:
    return PixelSpec(height=height, width=width or height, channels=channels, fit=fit)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def radiograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth gray image with a few soft structures and slight film grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 235, (7, 6), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = rng.normal(0, 1.5, (height, width))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.merge("RGB", [radiograph(width, height, seed + channel) for channel in range(3)])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


# -- decoding: every mode ------------------------------------------------------------------------


def gray_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),  # mean difference in gray values; 0 is exact
    [
        ("1", "PNG", 0),
        ("L", "PNG", 0),
        ("L", "JPEG", 2),
        ("LA", "PNG", 0),
        ("P", "PNG", 0),
        ("P", "GIF", 0),
        ("RGB", "PNG", 0),
        ("RGB", "JPEG", 8),
        ("RGB", "WEBP", 6),
        ("RGBA", "PNG", 0),
        ("CMYK", "TIFF", 1),
        ("CMYK", "JPEG", 5),
        ("YCbCr", "JPEG", 8),
        ("L", "BMP", 0),
        ("L", "PPM", 0),
        ("L", "TIFF", 0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_decodes_to_what_it_shows(mode: str, kind: str, tolerance: int, channels: int) -> None:
    image = photograph(40, 30).convert(mode)
    shown = np.asarray(image.convert("RGB").convert("L" if channels == 1 else "RGB")).reshape(30, 40, channels)
    pixels = decode(encode(image, kind), channels)
    assert pixels.shape == (30, 40, channels) and pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - shown)
    assert difference.mean() <= tolerance and (tolerance or difference.max() == 0)


def test_gray_becomes_three_equal_channels() -> None:
    pixels = decode(encode(radiograph(9, 7)), 3)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()


def test_16_bits_scale_by_their_full_range() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    png = encode(Image.fromarray(values))
    assert Image.open(BytesIO(png)).mode.startswith("I;16")
    expected = np.rint(values.astype(np.float64) / 65535 * 255)
    assert (decode(png, 1)[..., 0] == expected).all()


def test_8_bits_stored_as_16_come_back() -> None:
    gray = radiograph(20, 10)
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert (decode(encode(wide), 1)[..., 0] == gray_of(gray)).all()


def test_whole_numbers_of_32_bits_follow_the_16_bit_rule() -> None:
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    assert decode(encode(Image.fromarray(values), "TIFF"), 1)[..., 0].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 128.0, 254.6], [0, 128, 255]), ([0.0, 257.0, 65535.0], [0, 1, 255])],
)
def test_floats_scale_by_the_range_they_lie_in(values: list[float], expected: list[int]) -> None:
    tiff = encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert decode(tiff, 1)[..., 0].tolist() == [expected]


@pytest.mark.parametrize("values", [[-1.0, 3.0], [0.0, 1e6], [0.0, float("nan")], [0.0, float("inf")]])
def test_values_without_a_stated_range_are_refused(values: list[float]) -> None:
    tiff = encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    with pytest.raises(ImageError, match="outside 0 to 65535"):
        decode(tiff, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    gray = radiograph(20, 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: gray,
        2: gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: gray.transpose(Image.Transpose.ROTATE_180),
        4: gray.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: gray.transpose(Image.Transpose.TRANSPOSE),
        6: gray.transpose(Image.Transpose.ROTATE_270),
        7: gray.transpose(Image.Transpose.TRANSVERSE),
        8: gray.transpose(Image.Transpose.ROTATE_90),
    }[orientation]
    assert (decode(encode(gray, exif=exif), 1)[..., 0] == np.asarray(turned)).all()


# -- decoding: what is refused -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("decile", range(1, 10))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_truncated_files_are_refused(kind: str, decile: int) -> None:
    whole = encode(photograph(90, 60), kind)
    assert decode(whole, 3).shape == (60, 90, 3)
    with pytest.raises(ImageError):
        decode(whole[: len(whole) * decile // 10], 3)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG"]), progressive=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused_or_has_all_its_pixels(kind: str, progressive: bool, share: float) -> None:
    whole = encode(photograph(60, 40), kind, **({"progressive": progressive} if kind == "JPEG" else {}))
    try:
        pixels = decode(whole[: int(len(whole) * share)], 3)
    except ImageError:
        return
    assert (pixels == decode(whole, 3)).all()  # only what follows the last pixel was cut


@settings(max_examples=80, deadline=None)
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"]),
)
@pytest.mark.filterwarnings("ignore")
def test_no_bytes_raise_anything_but_image_error(data: bytes, head: bytes) -> None:
    with pytest.raises(ImageError):
        decode(head + data, 1)


@pytest.mark.parametrize("data", [b"", b"not an image\n" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_text_is_refused_with_a_hint(data: bytes) -> None:
    with pytest.raises(ImageError, match="no image") as caught:
        to_pixels(data, spec())
    assert "PNG" in caught.value.hint


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 50_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    # The data are cut short as well: had they been touched, the error would say so.
    with pytest.raises(ImageError, match=r"declares|bomb") as caught:
        decode(png_that_declares(side, side), 1)
    assert "max_pixels" in caught.value.hint


def test_max_pixels_is_a_bound_that_may_be_reached() -> None:
    png = encode(radiograph(20, 10))
    assert decode(png, 1, max_pixels=200).size == 200
    with pytest.raises(ImageError, match="20 x 10"):
        decode(png, 1, max_pixels=199)


def test_truncated_images_are_never_allowed_globally() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


# -- fitting -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]), st.sampled_from(["stretch", "pad"]))
def test_every_size_fits_its_frame(width: int, height: int, to_h: int, to_w: int, channels: int, how: str) -> None:
    frame = spec(to_h, to_w, channels, how)
    pixels = to_pixels(encode(Image.new("L", (width, height), 200)), frame)
    assert pixels.shape == (to_h, to_w, channels) and pixels.dtype == np.uint8
    assert set(np.unique(pixels)) <= ({200} if how == "stretch" else {0, 200})


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES)
def test_padding_is_centred_and_keeps_the_aspect_ratio(width: int, height: int, side: int) -> None:
    inside = to_pixels(encode(Image.new("L", (width, height), 255)), spec(side, fit="pad"))[..., 0] > 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    scale = side / max(width, height)
    assert abs(len(rows) - max(1, height * scale)) <= 0.5 and abs(len(columns) - max(1, width * scale)) <= 0.5
    assert abs(rows[0] - (side - 1 - rows[-1])) <= 1 and abs(columns[0] - (side - 1 - columns[-1])) <= 1


def test_an_image_of_the_right_size_is_untouched() -> None:
    gray = radiograph(48, 48)
    assert (to_pixels(encode(gray), spec(48))[..., 0] == np.asarray(gray)).all()


@pytest.mark.parametrize("size", [(1300, 900), (1024, 1024), (599, 613), (299, 299), (230, 2000), (450, 449)])
@pytest.mark.parametrize("side", [64, 128, 224])
def test_shrinking_is_antialiased(size: tuple[int, int], side: int) -> None:
    for image, channels, decibel in ((radiograph(*size), 1, 50), (photograph(*size), 3, 45)):
        reference = np.asarray(image.resize((side, side), Image.BILINEAR)).reshape(side, side, channels)
        assert psnr(fit(image, spec(side, channels=channels)), reference) >= decibel


def test_fine_stripes_turn_gray_instead_of_aliasing() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (512, 256))
    pixels = fit(Image.fromarray(stripes), spec(100))
    assert pixels.std() < 12 and abs(pixels.mean() - 127.5) < 1


def test_enlarging_is_bilinear() -> None:
    gray = radiograph(40, 30)
    assert (fit(gray, spec(96))[..., 0] == np.asarray(gray.resize((96, 96), Image.BILINEAR))).all()


def test_the_same_bytes_give_the_same_pixels() -> None:
    data = encode(photograph(333, 222), "JPEG")
    assert (to_pixels(data, spec(64)) == to_pixels(data, spec(64))).all()


# -- masks ---------------------------------------------------------------------------------------


def disc(width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return ((columns + 0.5) / width - 0.4) ** 2 + ((rows + 0.5) / height - 0.6) ** 2 < 0.08


def mask_file(shape: np.ndarray, mode: str = "L") -> bytes:
    return encode(Image.fromarray(shape.astype(np.uint8) * 255).convert(mode))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_masks_of_any_mode_are_zeros_and_ones(mode: str) -> None:
    mask = read_mask(mask_file(disc(64, 64), mode), spec(64))
    assert mask.shape == (64, 64) and mask.dtype == np.uint8
    assert (mask == disc(64, 64)).all()


def test_a_palette_with_inverted_index_comes_out_right() -> None:
    indices = Image.fromarray(1 - disc(60, 45).astype(np.uint8), "P")
    indices.putpalette([255, 255, 255, 0, 0, 0])
    mask = read_mask(encode(indices), spec(45, 60))
    assert (mask == disc(60, 45)).all()


@pytest.mark.parametrize("how", ["stretch", "pad"])
@pytest.mark.parametrize("mask_size", [(256, 256), (300, 200), (75, 50), (601, 402)])
def test_a_mask_of_another_size_stays_in_step_with_its_image(how: str, mask_size: tuple[int, int]) -> None:
    image_size, frame = (300, 200), spec(96, fit=how)
    image = to_pixels(mask_file(disc(*image_size)), frame)[..., 0] > 127
    mask = read_mask(mask_file(disc(*mask_size)), frame, image_size=image_size).astype(bool)
    assert (image & mask).sum() / (image | mask).sum() > 0.97


def test_a_broken_mask_is_refused() -> None:
    with pytest.raises(ImageError):
        read_mask(mask_file(disc(64, 64))[:60], spec(64))


# -- and back: a mask on the image that was sent --------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["stretch", "pad"]))
def test_a_mask_comes_back_at_the_size_of_its_image(width: int, height: int, to_h: int, to_w: int, how: str) -> None:
    """A frame that is full gives a full mask, one that is empty an empty one, and padding is never part of it."""
    frame = spec(to_h, to_w, fit=how)
    inside = read_mask(mask_file(np.ones((height, width), dtype=bool)), frame).astype(np.float32)
    back = unfit_mask(inside, 0.5, frame, (width, height))
    assert back.shape == (height, width) and back.dtype == bool and back.all()
    assert not unfit_mask(1 - inside, 0.5, frame, (width, height)).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(60, 400), st.integers(60, 400), st.sampled_from(["stretch", "pad"]), st.sampled_from([96, 224]))
def test_a_mask_that_goes_through_the_frame_comes_back(width: int, height: int, how: str, side: int) -> None:
    drawn = disc(width, height)
    scores = read_mask(mask_file(drawn), spec(side, fit=how)).astype(np.float32)
    back = unfit_mask(scores, 0.5, spec(side, fit=how), (width, height))
    assert (back & drawn).sum() / (back | drawn).sum() > 0.9


def test_probabilities_give_a_finer_outline_than_the_decision() -> None:
    drawn = disc(1000, 800)
    soft = np.asarray(Image.fromarray(drawn.astype(np.float32)).resize((48, 48), Image.BILINEAR))
    decision = unfit_mask((soft >= 0.5).astype(np.float32), 0.5, spec(48), (1000, 800))
    finer = unfit_mask(soft, 0.5, spec(48), (1000, 800))
    wrong, fewer_wrong = (np.mean(mask != drawn) for mask in (decision, finer))
    assert fewer_wrong < 0.3 * wrong


@pytest.mark.parametrize("how", ["stretch", "pad"])
def test_at_the_size_of_the_frame_a_mask_is_the_decision(how: str) -> None:
    scores = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    assert (unfit_mask(scores, float(scores[3, 4]), spec(32, fit=how), (32, 32)) == (scores >= scores[3, 4])).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 50))
def test_tiles_meet_without_a_seam(width: int, height: int, tile: int) -> None:
    """A ramp across the frame, cut half-way: the edge is one straight line however the mask was tiled."""
    scores = np.tile(np.linspace(0, 1, 24, dtype=np.float32), (24, 1))
    whole = unfit_mask(scores, 0.47, spec(24), (width, height))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "TILE", tile)
        assert (unfit_mask(scores, 0.47, spec(24), (width, height)) == whole).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 50))
def test_a_drawn_mask_is_the_mask(width: int, height: int, tile: int) -> None:
    scores = np.random.default_rng(width).random((24, 24), dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "TILE", tile)  # of both: another tile may round a score at the cut to its other side
        mask = unfit_mask(scores, 0.5, spec(24), (width, height))
        drawn = draw_mask(scores, 0.5, spec(24), (width, height))
    image = Image.open(BytesIO(drawn.png))
    assert image.mode == "L"
    assert (np.asarray(image) == mask * 255).all()
    assert drawn.fraction == mask.mean()
    assert (np.asarray(Image.open(BytesIO(mask_png(mask)))) == mask * 255).all()


@pytest.mark.parametrize("size", [(6000, 6000), (9_000_000, 4)])
def test_drawing_a_large_mask_takes_a_few_bands_of_memory(size: tuple[int, int]) -> None:
    scores = np.asarray(Image.fromarray(disc(64, 64)).convert("L"), dtype=np.float32) / 255
    tracemalloc.start()
    drawn = draw_mask(scores, 0.5, spec(64), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(drawn.png) + 16 * max(size[0], masks.TILE**2)


@pytest.mark.parametrize("size", [(6000, 6000), (9_000_000, 4)])
def test_a_large_mask_takes_little_more_memory_than_itself(size: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    tracemalloc.start()
    unfit_mask(scores, 0.5, spec(64), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size[0] * size[1] + 12 * masks.TILE**2


# -- real files ----------------------------------------------------------------------------------


@needs_samples
def test_a_git_lfs_pointer_is_no_image() -> None:
    for path in (ODDITIES / "git_lfs_pointer_named_jpg").iterdir():
        with pytest.raises(ImageError, match="no image"):
            to_pixels(path.read_bytes(), spec(channels=3))


@needs_samples
def test_names_do_not_matter_bytes_do() -> None:
    for path in (ODDITIES / "png_bytes_named_jpg").iterdir():
        assert to_pixels(path.read_bytes(), spec()).std() > 3


@needs_samples
def test_real_radiographs_and_photographs_stay_close_to_antialiased_bilinear() -> None:
    grays = sorted((SAMPLES / "chest_xray_pneumonia").rglob("*.jpeg"))[::9]
    colours = sorted((SAMPLES / "ham10000" / "images").glob("*.jpg"))[::14]
    assert grays and colours
    for paths, channels, median in ((grays, 1, 50), (colours, 3, 45)):
        images = [read(path.read_bytes(), channels) for path in paths]
        pairs = [(fit(image, spec(224, channels=channels)), image) for image in images]
        found = [psnr(a, np.asarray(b.resize((224, 224), Image.BILINEAR)).reshape(a.shape)) for a, b in pairs]
        assert np.median(found) >= median and min(found) >= 45


@needs_samples
def test_real_inverted_palette_masks_show_the_lesion_in_the_middle() -> None:
    masks = [path for path in sorted((SAMPLES / "ham10000" / "masks").glob("*.png")) if Image.open(path).mode == "P"]
    assert len(masks) > 20
    for path in masks:
        mask = read_mask(path.read_bytes(), spec(64))
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert mask[16:48, 16:48].mean() > border.mean()

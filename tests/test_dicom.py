"""DICOM files become pixels as a viewer shows them, and nothing of a person comes along."""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import dicomfiles
import numpy as np
import pydicom
import pytest
from dicomfiles import CANARY, IDENTIFYING, LOSSLESS, dataset, encapsulated, file, transcoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medflow.dicom import codestream, gray, header, isolated
from medflow.dicom.facts import DicomFacts, facts, pseudonym, years
from medflow.dicom.header import HEADER_BYTES
from medflow.errors import ImageError
from medflow.preprocess import decode, to_pixels
from medflow.records import Manifest, PixelSpec
from medflow.table_files import read_manifest

RNG = np.random.default_rng(0)
GRAY8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
GRAY16 = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
COLOR8 = RNG.integers(0, 256, (16, 12, 3), dtype=np.uint8)


def smooth(rows: int = 40, columns: int = 32) -> np.ndarray:
    """uint8, as a lossy code keeps it."""
    y, x = np.mgrid[:rows, :columns]
    return np.clip(128 + 60 * np.sin(x / 9) + 40 * np.cos(y / 7), 0, 255).astype(np.uint8)


def shown(data: bytes, channels: int = 1) -> np.ndarray:
    pixels = decode(data, channels)
    return pixels[..., 0] if channels == 1 else pixels


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_eight_bits_are_themselves(syntax: uid.UID) -> None:
    assert (shown(file(dataset(GRAY8), syntax)) == GRAY8).all()
    assert (shown(file(dataset(COLOR8), syntax), 3) == COLOR8).all()


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_sixteen_bits_are_those_of_a_png(syntax: uid.UID) -> None:
    stream = BytesIO()
    Image.fromarray(GRAY16).save(stream, "PNG")
    assert (shown(file(dataset(GRAY16), syntax)) == shown(stream.getvalue())).all()


def test_without_a_window_the_stored_bits_are_the_range() -> None:
    """Not the extremes of the image: half of 12 bits is half gray, and a blank image stays blank."""
    half = np.full((4, 4), 2048, dtype=np.uint16)
    assert (shown(file(dataset(half, BitsStored=12))) == 128).all()
    signed = np.array([[-2048, 0, 2047]], dtype=np.int16)
    assert shown(file(dataset(signed, BitsStored=12))).tolist() == [[0, 128, 255]]


def test_monochrome1_is_turned_over() -> None:
    assert (shown(file(dataset(GRAY8, PhotometricInterpretation="MONOCHROME1"))) == 255 - GRAY8).all()


def test_rescale_comes_before_the_window() -> None:
    """Hounsfield units: stored = HU + 1024, window -50 to 150 by its own units."""
    hounsfield = np.array([[-1000, -50, 50, 150, 2000]])
    made = dataset(
        (hounsfield + 1024).astype(np.uint16), BitsStored=12, RescaleSlope="1", RescaleIntercept="-1024",
        WindowCenter="50", WindowWidth="200", VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    assert shown(file(made)).tolist() == [[0, 0, 128, 255, 255]]


def test_the_first_of_several_windows_counts() -> None:
    one = dataset(GRAY16, WindowCenter="20000", WindowWidth="9000")
    two = dataset(GRAY16, WindowCenter=["20000", "50000"], WindowWidth=["9000", "100"])
    assert (shown(file(one)) == shown(file(two))).all()
    assert len(np.unique(shown(file(one)))) > 20


def test_bits_above_the_stored_ones_do_not_count() -> None:
    """Old files keep an overlay in them."""
    plain = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    assert (shown(file(dataset(plain | 0x8000, BitsStored=12))) == shown(file(dataset(plain, BitsStored=12)))).all()


WINDOWS = st.tuples(st.floats(-3000, 3000), st.floats(1, 4000), st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))


def by_the_standard(x: float, c: float, w: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1 and C.11.2.1.3 word for word, with ymin 0 and ymax 255."""
    if function == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (x - c) / w))
    if function == "LINEAR":
        low, high, share = c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2, (x - (c - 0.5)) / max(w - 1, 1e-300) + 0.5
    else:
        low, high, share = c - w / 2, c + w / 2, (x - c) / w + 0.5
    return 0 if x <= low else 255 if x > high else share * 255


@settings(max_examples=60, deadline=None)
@given(WINDOWS, st.booleans(), st.floats(0.1, 4), st.integers(-1024, 1024))
def test_a_window_is_the_standards(asked: tuple[float, float, str], signed: bool, slope: float, start: int) -> None:
    center, width, function = round(asked[0], 3), round(asked[1], 3), asked[2]
    slope = round(slope, 3)
    kind = np.int16 if signed else np.uint16
    values = np.arange(0, 4096, 16) - (2048 if signed else 0)
    made = dataset(
        values.astype(kind).reshape(16, 16), BitsStored=12, RescaleSlope=str(slope), RescaleIntercept=str(start),
        WindowCenter=str(center), WindowWidth=str(width), VOILUTFunction=function,
    )  # fmt: skip
    found = shown(file(made)).reshape(-1)
    with np.errstate(over="ignore"):
        expected = [by_the_standard(value * slope + start, center, width, function) for value in values]
    assert np.abs(found - np.array(expected)).max() <= 0.5 + 1e-6


@settings(max_examples=40, deadline=None)
@given(WINDOWS)
def test_a_window_is_that_of_pydicom(asked: tuple[float, float, str]) -> None:
    center, width, function = round(asked[0], 3), round(max(asked[1], 1.01), 3), asked[2]
    values = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    made = dataset(values, BitsStored=12, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    theirs = (pydicom.pixels.apply_voi_lut(values, made) + 2048) / 4095 * 255
    assert np.abs(shown(file(made)) - theirs).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_look_up_table_is_that_of_pydicom(kind: str, syntax: uid.UID) -> None:
    entries = np.sort(RNG.integers(0, 65536, 200)).tolist()
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [200, 20, 16], entries
    item["LUTData"].VR = item["LUTDescriptor"].VR = "US"
    if kind == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    made = dataset(GRAY8, **{kind: Sequence([item])})
    apply = pydicom.pixels.apply_voi_lut if kind == "VOILUTSequence" else pydicom.pixels.apply_modality_lut
    theirs = apply(GRAY8.astype(np.int32), made) / 257
    assert np.abs(shown(file(made, syntax)) - theirs).max() <= 0.5


def test_a_palette_gives_its_colours() -> None:
    colors = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for place, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = (colors[:, place].astype("<u2") * 257).tobytes()
    assert (shown(file(dataset(GRAY8, **elements)), 3) == colors[GRAY8]).all()


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"WindowCenter": "10", "WindowWidth": "0"}, "width 0"),
        ({"WindowCenter": "10", "WindowWidth": "-5", "VOILUTFunction": "LINEAR_EXACT"}, "width -5"),
        ({"WindowCenter": "10", "WindowWidth": "5", "VOILUTFunction": "CURVED"}, "none of LINEAR"),
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "slope is 0"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "look-up table"),
        ({"PhotometricInterpretation": "HSV"}, "photometric"),
        ({"SamplesPerPixel": 3}, "3 samples"),
        ({"BitsStored": 9}, "9 of 8 bits"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 of 32 bits"),
        ({"HighBit": 3}, "bit 3"),
        ({"Rows": 0}, "no rows"),
        ({"NumberOfFrames": "3"}, "3 frames, expected one"),
        ({"Rows": 17}, "cannot be decoded"),
    ],
)
def test_what_cannot_be_meant_is_refused(elements: dict[str, object], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode(file(dataset(GRAY8, **elements)), 1)


# -- compressed pixels ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("pixels", ["gray 8", "gray 12", "gray 16", "signed 16", "colour"])
def test_every_lossless_code_gives_the_plain_file(kind: str, pixels: str) -> None:
    plain = {
        "gray 8": dataset(smooth()),
        "gray 12": dataset(smooth().astype(np.uint16) * 16, BitsStored=12),
        "gray 16": dataset(smooth().astype(np.uint16) * 256 + 7),
        "signed 16": dataset(smooth().astype(np.int16) * 200 - 20000),
        "colour": dataset(np.stack([smooth(), smooth()[::-1], 255 - smooth()], axis=-1)),
    }[pixels]
    channels = 3 if pixels == "colour" else 1
    data = file(plain)
    assert (shown(transcoded(data, LOSSLESS[kind]), channels) == shown(data, channels)).all()


def test_jpeg_baseline() -> None:
    picture = smooth()
    for image, channels, photometric in ((picture, 1, "MONOCHROME2"), (np.stack([picture] * 3, -1), 3, "YBR_FULL_422")):
        stream = BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=95)
        data = encapsulated(image, stream.getvalue(), uid.JPEGBaseline8Bit, PhotometricInterpretation=photometric)
        assert np.abs(shown(data, channels).astype(int) - image).max() <= 6


def test_pydicoms_own_files_are_read() -> None:
    """Made by many tools; those left out here are not single gray or colour images of 8 or 16 bits."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    names = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jpeg_ls_lossless.dcm"]
    first, *others = [decode((folder / name).read_bytes(), 1) for name in names]
    assert first.std() > 50 and all((other == first).all() for other in others)
    color = [decode((folder / f"SC_rgb_{name}.dcm").read_bytes(), 3) for name in ("rle", "jpeg_gdcm", "rle_16bit")]
    assert all((other == color[0]).all() for other in color[1:])


def test_an_unknown_transfer_syntax_is_named() -> None:
    with pytest.raises(ImageError, match="MPEG2"):
        decode(encapsulated(GRAY8, b"x", uid.MPEG2MPML), 1)
    with pytest.raises(ImageError, match="nobody knows"):
        decode(
            encapsulated(GRAY8, b"x", uid.MPEG2MPML).replace(str(uid.MPEG2MPML).encode(), b"1.2.840.10008.1.2.4.999"), 1
        )


# -- hostile files -------------------------------------------------------------------------------


def test_the_header_bounds_the_work() -> None:
    with pytest.raises(ImageError, match="60000 x 50000 pixels"):
        decode(file(dataset(GRAY8, Rows=50000, Columns=60000)), 1)
    with pytest.raises(ImageError, match="more than the 255 allowed"):
        decode(file(dataset(GRAY8)), 1, max_pixels=255)


@pytest.mark.parametrize("kind", ["JPEG lossless", "JPEG-LS", "JPEG 2000"])
def test_a_frame_of_another_size_is_refused_unread(kind: str) -> None:
    found = pydicom.dcmread(BytesIO(transcoded(file(dataset(smooth())), LOSSLESS[kind])))
    found.Rows = 39
    with pytest.raises(ImageError, match="another size"):
        decode(file(found, found.file_meta.TransferSyntaxUID), 1)


@pytest.mark.parametrize("kind", ["JPEG lossless", "JPEG-LS", "JPEG 2000"])
def test_a_frame_without_its_end_is_refused(kind: str) -> None:
    found = pydicom.dcmread(BytesIO(transcoded(file(dataset(smooth())), LOSSLESS[kind])))
    [frame] = pydicom.encaps.generate_frames(found.PixelData, number_of_frames=1)
    with pytest.raises(ImageError, match="no end"):
        decode(encapsulated(smooth(), frame[: len(frame) // 2], found.file_meta.TransferSyntaxUID), 1)


def test_an_rle_bomb_is_refused() -> None:
    bomb = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 2**20
    with pytest.raises(ImageError, match="RLE pixels unpack to more"):
        decode(encapsulated(GRAY8, bomb, uid.RLELossless), 1)


def test_a_deflate_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "INFLATED_BYTES", 2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(2**20 + 1)) + packer.flush()
    data = transcoded(file(dataset(GRAY8)), LOSSLESS["deflated"])
    mark = b"1.2.840.10008.1.2.1.99"
    with pytest.raises(ImageError, match="inflates to more than 1 MiB"):
        decode(data[: data.index(mark) + len(mark)] + bomb, 1)


def test_gdcm_may_die_and_the_next_image_is_read() -> None:
    """Bytes of which it aborts; without a process of its own this test would end the tests."""
    data = transcoded(file(dataset(smooth())), LOSSLESS["JPEG-LS"])
    start = data.index(b"\xe0\x7f\x10\x00") + 20
    assert (shown(data) == smooth()).all()
    first = isolated.CHILD._process
    for seed in range(400):
        draw, damaged = random.Random(seed), bytearray(data)
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(start, len(data))] = draw.randrange(256)
        try:
            decode(bytes(damaged), 1)
        except ImageError:
            pass
        if isolated.CHILD._process is not first:
            break
    assert isolated.CHILD._process is None, "none of these bytes ended it: look for others"
    assert (shown(data) == smooth()).all()


def test_gdcm_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "SECONDS", 0.2)
    os.kill(isolated.CHILD._running().pid, signal.SIGSTOP)
    data = transcoded(file(dataset(smooth())), LOSSLESS["JPEG-LS"])
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode(data, 1)


def test_a_header_of_many_items_is_refused() -> None:
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * (HEADER_BYTES // 8)
    sequence = struct.pack("<HH2sHL", 0x0029, 0x1010, b"SQ", 0, 0xFFFFFFFF) + items
    data = file(dataset(GRAY8))
    with pytest.raises(ImageError, match="sequence items"):
        decode(data[: data.index(b"\xe0\x7f\x10\x00")] + sequence + data[data.index(b"\xe0\x7f\x10\x00") :], 1)


WHOLE = file(dataset(GRAY16, WindowCenter="20000", WindowWidth="9000", **IDENTIFYING))
PACKED = transcoded(file(dataset(smooth())), LOSSLESS["JPEG 2000"])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([WHOLE, PACKED]), st.floats(0, 1), st.integers(0, 2**32))
def test_damage_is_told_and_never_quotes_the_file(data: bytes, share: float, seed: int) -> None:
    """Cut anywhere, or with bytes changed: pixels of the right kind, or an ImageError without a word of the file."""
    draw = random.Random(seed)
    damaged = bytearray(data if draw.random() < 0.5 else data[: int(len(data) * share)])
    for _ in range(draw.randrange(4)):
        if len(damaged) > 140:
            damaged[draw.randrange(140, len(damaged))] = draw.randrange(256)
    try:
        pixels = decode(bytes(damaged), 1)
    except ImageError as error:
        assert CANARY not in error.message + error.hint
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_packbits_are_measured_as_they_unpack(rows: int, columns: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 3, (rows, columns), dtype=np.uint8)
    data = dicomfiles.compressed(pixels, uid.RLELossless)
    assert (shown(data) == np.rint(pixels)).all()
    [frame] = pydicom.encaps.generate_frames(pydicom.dcmread(BytesIO(data)).PixelData, number_of_frames=1)
    assert rows * columns <= codestream._packbits_size(frame[64:], 10**9) <= rows * columns + 1


def test_what_has_no_pixels_is_refused() -> None:
    report = dataset(GRAY8)
    del report.PixelData
    with pytest.raises(ImageError, match="no pixel data"):
        decode(file(report), 1)
    with pytest.raises(ImageError, match="no image that can be opened"):
        decode(file(report)[132:], 1)


def test_training_and_serving_see_the_same(tmp_path: Path) -> None:
    spec = PixelSpec(height=8, width=8, channels=1)
    assert to_pixels(WHOLE, spec).shape == (8, 8, 1)
    table = gray.full_range(12)
    assert table[0] == 0 and table[-1] == 255 and (np.diff(table.astype(int)) >= 0).all()


# -- facts ---------------------------------------------------------------------------------------


def written(tmp_path: Path, **elements: object) -> Path:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.dcm"
    path.write_bytes(file(dataset(GRAY8, **elements)))
    return path


def test_facts_are_pseudonyms_and_what_is_no_secret(tmp_path: Path) -> None:
    found = facts(written(tmp_path, PatientAge="061Y", PatientSex="f", ViewPosition="PA", **IDENTIFYING))
    assert found == DicomFacts(
        group=pseudonym("patient", "Canary-1"), study=pseudonym("study", "1.2.3"),
        age=61.0, sex="F", view="PA", burned_in=False,
    )  # fmt: skip
    assert re.fullmatch("patient-[0-9a-f]{16}", str(found.group))
    assert CANARY not in repr(found) and "1.2.3" not in repr(found)


def test_patients_are_told_apart_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, same, other = (written(tmp_path, PatientID=name) for name in ("A1", "A1 ", "A2"))
    assert facts(one).group == facts(same).group != facts(other).group
    before = facts(one).group
    monkeypatch.setenv("MEDFLOW_PSEUDONYM_SALT", "a secret")
    assert facts(one).group == facts(same).group not in (before, None)


def test_without_a_patient_the_study_is_the_group(tmp_path: Path) -> None:
    unnamed = facts(written(tmp_path, PatientID=""))
    assert unnamed.group == unnamed.study is not None
    nobody = facts(written(tmp_path, PatientID="", StudyInstanceUID=""))
    assert (nobody.group, nobody.study) == (None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("034Y", 34), ("018M", 1.5), ("000D", 0), ("089Y", 89), ("090Y", 90), ("112Y", 90), ("34", None), ("", None)],
)
def test_ages(text: str, expected: float | None) -> None:
    assert years(text) == expected


def test_free_text_is_no_sex_and_no_view(tmp_path: Path) -> None:
    found = facts(written(tmp_path, PatientSex="O", ViewPosition=CANARY, BurnedInAnnotation="YES"))
    assert (found.sex, found.view, found.burned_in) == (None, None, True)


def test_facts_of_a_deflated_file_are_read_from_its_start(tmp_path: Path) -> None:
    noise = RNG.integers(0, 65536, (1400, 1400), dtype=np.uint16)
    path = tmp_path / "large.dcm"
    path.write_bytes(transcoded(file(dataset(noise, PatientAge="050Y")), LOSSLESS["deflated"]))
    assert path.stat().st_size > HEADER_BYTES and facts(path).age == 50


def test_what_is_no_dicom_file_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"<html>" * 100)
    with pytest.raises(ImageError, match="no DICOM file"):
        facts(tmp_path / "a.dcm")


# -- a dataset of DICOM files --------------------------------------------------------------------


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, str]:
    """Class folders with two patients' DICOM files each, through ingest; what was said on the way."""
    root = tmp_path_factory.mktemp("clinic")
    for number in range(8):
        label, patient = ("Clear", "Ill")[number % 2], number // 4
        path = root / "data" / label / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        elements = {**IDENTIFYING, "PatientID": f"{CANARY}-{label}-{patient}", "PatientAge": "093Y", "PatientSex": "F"}
        pixels = np.roll(smooth(64, 64), 7 * number, axis=1)
        path.write_bytes(file(dataset(pixels, BurnedInAnnotation="YES" if number == 0 else "NO", **elements)))
    (root / "data" / "Ill" / "broken.dcm").write_bytes(file(dataset(GRAY8, Rows=17, **IDENTIFYING)))
    # A process of its own: what it prints and warns is part of what must not tell.
    done = subprocess.run(
        [sys.executable, "-c", INGEST, str(root)], capture_output=True, text=True, check=True, timeout=120
    )
    files = read_manifest(lambda name: (root / "artifact" / name).read_bytes())
    return root, files, done.stdout + done.stderr


INGEST = """
import logging, sys
from pathlib import Path
from medflow import datasets
from medflow.config.sections import Declaration, IngestConfig
from medflow.ingest import ingest
from medflow.records import Source
from medflow.table_files import manifest_files
from pydantic import TypeAdapter

logging.basicConfig(level=logging.DEBUG)
root = Path(sys.argv[1])
head = {"kind": "exclusive", "name": "label", "labels": ["Clear", "Ill"]}
declared = TypeAdapter(Declaration).validate_python({"kind": "folder", "heads": [head], "grouped_by": "patient"})
source = Source(kind="folder", fingerprint="x", uri=str(root / "data"))
manifest, _ = ingest(source, datasets.get("clinic", declared), (16,), IngestConfig(), root / "work", workers=1)
(root / "artifact").mkdir()
for name, data in manifest_files(manifest).items():
    (root / "artifact" / name).write_bytes(data)
"""


def test_patients_of_a_dicom_folder_are_groups(clinic: tuple[Path, Manifest, str]) -> None:
    _, manifest, _ = clinic
    whole = dict(zip(manifest.column("path"), manifest.column("group"), strict=True))
    del whole["Ill/broken.dcm"]
    assert len(set(whole.values())) == 4 and whole["Clear/0.dcm"] == whole["Clear/2.dcm"] != whole["Clear/4.dcm"]
    assert all(str(group).startswith("patient-") for group in whole.values())
    assert {manifest.column(name)[0] for name in ("age", "sex")} == {90.0, "F"}
    [burned] = [finding for finding in manifest.findings if finding.check == "burned_in_annotation"]
    assert (burned.severity, burned.examples) == ("warning", ("Clear/0.dcm",))


def test_a_broken_dicom_file_is_an_error_of_its_row(clinic: tuple[Path, Manifest, str]) -> None:
    _, manifest, _ = clinic
    errors = dict(zip(manifest.column("path"), manifest.column("error"), strict=True))
    assert "cannot be decoded" in errors.pop("Ill/broken.dcm") and set(errors.values()) == {None}


def test_nobody_is_named_in_what_is_stored_or_said(clinic: tuple[Path, Manifest, str]) -> None:
    """Every identifying element of every file holds the canary; shards, rows, facts, logs and warnings do not."""
    root, manifest, said = clinic
    assert all(CANARY.encode() in path.read_bytes() for path in (root / "data").rglob("*.dcm"))
    left = [path for path in root.rglob("*") if path.is_file() and root / "data" not in path.parents]
    assert len(left) > 3
    for path in left:
        assert CANARY.encode() not in path.read_bytes() and b"1.2.3" not in path.read_bytes(), path
    assert CANARY not in str(manifest.to_pandas().to_dict()) and CANARY not in said

"""predict: every input has a row, and a torch bundle and its export give the same answers."""

from __future__ import annotations

import csv
import hashlib
from io import BytesIO
from pathlib import Path

import handmade
import numpy as np
import pytest
import squares
import torch
from PIL import Image

from medflow.config.sections import ExportConfig
from medflow.errors import DataError
from medflow.export import export_onnx
from medflow.predict import TABLE, caption, find, overlay_png, predict, sampled
from medflow.records import Bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return handmade.bundle(tmp_path_factory.mktemp("handmade") / "bundle")


def _files(folder: Path, grays: dict[str, int]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, gray in grays.items():
        (folder / name).write_bytes(handmade.image_file(gray))
    return [folder / name for name in grays]


def _table(out: Path) -> list[dict[str, str]]:
    with (out / TABLE).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_answers_are_right(bundle: Bundle, tmp_path: Path) -> None:
    paths = _files(tmp_path / "in", {"a.png": 20, "b.png": 220, "c.png": 124})
    predicted = predict(bundle, paths, tmp_path / "out")
    rows = _table(tmp_path / "out")
    assert [row["decision"] for row in rows] == ["dark", "bright", "dark"]
    assert [float(row["mask_fraction"]) for row in rows] == [0.0, 1.0, 0.0]
    # (128 - 124) / 8 = 0.5 logits to each side, temperature 2: softmax([0.25, -0.25])
    assert float(rows[2]["diagnosis.dark"]) == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-5)
    assert rows[0]["sha256"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert (predicted.images, predicted.failed, predicted.bundle_digest) == (3, 0, bundle.digest())


def test_unreadable_inputs_are_rows_with_an_error(bundle: Bundle, tmp_path: Path) -> None:
    good = _files(tmp_path / "in", {f"{number:02d}.png": 220 for number in range(12)})
    text, cut, absent = tmp_path / "in" / "text.png", tmp_path / "in" / "cut.png", tmp_path / "in" / "absent.png"
    text.write_text("not an image")
    cut.write_bytes(good[0].read_bytes()[:40])
    paths = [text, *good[:9], absent, *good[9:], cut]
    predicted = predict(bundle, paths, tmp_path / "out")
    rows = _table(tmp_path / "out")
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row in rows:
        assert bool(row["error"]) == (Path(row["path"]) in (text, cut, absent))
        assert row["decision"] == ("" if row["error"] else "bright")
        assert bool(row["overlay"]) != bool(row["error"])
    assert (predicted.images, predicted.failed) == (15, 3)
    assert str(absent) in str(predicted)


def test_only_unreadable_inputs(bundle: Bundle, tmp_path: Path) -> None:
    predicted = predict(bundle, [tmp_path / "absent.png"], tmp_path / "out")
    assert predicted.failed == 1
    assert "No such file" in _table(tmp_path / "out")[0]["error"]


def test_nothing_given(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        predict(bundle, [tmp_path], tmp_path / "out")


def test_folders_are_searched_and_files_taken_as_named(tmp_path: Path) -> None:
    inside = _files(tmp_path / "in" / "deep", {"b.PNG": 1, "a.jpg": 1, "notes.txt": 1})
    assert find([tmp_path / "in"]) == [inside[1], inside[0]]
    assert find([inside[2]]) == [inside[2]]


def test_files_of_one_name_keep_their_own_overlays(bundle: Bundle, tmp_path: Path) -> None:
    paths = _files(tmp_path / "one", {"x.png": 20}) + _files(tmp_path / "two", {"x.png": 220})
    rows = predict(bundle, paths, tmp_path / "out").rows
    dark, bright = (np.asarray(Image.open(tmp_path / "out" / row.overlay)) for row in rows)
    # The upper left corner holds words.
    assert (dark[24:] == 20).all()
    assert tuple(bright[-1, -1]) == (234, 132, 132)


def test_masks_and_overlays_have_the_size_of_their_image(bundle: Bundle, tmp_path: Path) -> None:
    image = np.full((50, 120), 30, dtype=np.uint8)
    image[:, 60:] = 220
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: 50 wide, 120 high
    Image.fromarray(image).save(tmp_path / "plain.png")
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    predict(bundle, [tmp_path / "plain.png", tmp_path / "turned.png"], tmp_path / "out")
    rows = _table(tmp_path / "out")
    for row, size in zip(rows, ((120, 50), (50, 120)), strict=True):
        mask, overlay = (Image.open(tmp_path / "out" / row[name]) for name in ("mask", "overlay"))
        assert mask.size == overlay.size == size
        assert (
            float(row["mask_fraction"]) == pytest.approx((np.asarray(mask) > 0).mean()) == pytest.approx(0.5, abs=0.02)
        )
    assert (np.asarray(Image.open(tmp_path / "out" / rows[1]["mask"]))[70:] == 255).all()


def test_overlay_leaves_unmarked_pixels(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = True
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    (tmp_path / "o.png").write_bytes(overlay_png(image, mask))
    found = np.asarray(Image.open(tmp_path / "o.png"))
    assert tuple(found[0, 0]) == (162, 60, 60)
    assert (found[~mask] == 100).all()
    assert image.getpixel((0, 0)) == (100, 100, 100)


def test_an_overlay_says_class_and_confidence(bundle: Bundle, tmp_path: Path) -> None:
    paths = _files(tmp_path / "in", {"a.png": 124, "b.png": 220})
    predicted = predict(bundle, paths, tmp_path / "out")
    for path, row, words in zip(paths, predicted.rows, ("dark 0.62", "bright 1.00"), strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / row.mask)) > 0
        drawn = (tmp_path / "out" / row.overlay).read_bytes()
        assert drawn == overlay_png(Image.open(path), mask, words) != overlay_png(Image.open(path), mask)


def test_words_stand_in_a_corner_and_read_on_black_and_on_white() -> None:
    for gray in (0, 255):
        found = np.asarray(Image.open(BytesIO(overlay_png(Image.new("L", (400, 300), gray), None, "COVID 0.93"))))
        changed = (found != gray).any(axis=2)
        assert found.shape == (300, 400, 3) and changed.sum() > 100
        assert not changed[60:].any() and not changed[:, 200:].any()


def test_a_caption_names_every_decided_label() -> None:
    head = handmade.DIAGNOSIS.model_copy(update={"kind": "independent"})
    scores = np.array([0.61, 0.804])
    assert caption(head, scores, np.array([True, True])) == "dark 0.61\nbright 0.80"
    assert caption(head, scores, np.array([False, False])) == "none"


def test_some_of_the_images_the_same_each_time(bundle: Bundle, tmp_path: Path) -> None:
    paths = _files(tmp_path / "in", {f"{number:02d}.png": 10 * number for number in range(20)})
    chosen = sampled(paths, 5)
    assert len(chosen) == 5 and chosen == sorted(chosen) == sampled(paths, 5) != paths[:5]
    assert sampled(paths, None) == sampled(paths, 50) == paths
    predicted = predict(bundle, paths, tmp_path / "out", samples=5)
    assert [row.path for row in predicted.rows] == [str(path) for path in chosen]


@pytest.mark.parametrize("model", [squares.RESNET, squares.UNET], ids=lambda model: model.key)
def test_torch_and_onnx_agree(model: squares.ModelConfig, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    val, pixels = squares.data(tmp_path / "pixels")
    before = squares.torch_bundle(tmp_path, model, val, pixels)
    after = export_onnx(before, val, pixels, ExportConfig(), work=tmp_path / "onnx")
    rng = np.random.default_rng(4)
    paths = []
    for number in range(9):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (50 + number, 70), dtype=np.uint8)).save(paths[-1])
    first, second = (predict(bundle, paths, tmp_path / bundle.card.variant).rows for bundle in (before, after))
    for one, two in zip(first, second, strict=True):
        assert one.sha256 == two.sha256
        assert one.decision == two.decision != ""
        assert dict(one.probabilities) == pytest.approx(dict(two.probabilities), abs=1e-4)
        assert one.mask_fraction == (two.mask_fraction and pytest.approx(two.mask_fraction, abs=1e-2))
    first = predict(after, paths, tmp_path / "all", overlays="all", samples=3).rows
    assert len(first) == 3 and all((tmp_path / "all" / row.overlay).is_file() for row in first)
    assert bool(second[0].overlay) == (model is squares.UNET), "a picture without a mask is drawn on request alone"

"""Scoring: torch and ONNX bundles through one door, and what that door refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import handmade
import numpy as np
import pytest
import scored
import squares

from medflow import models, scoring
from medflow.errors import ArtifactError, DataError
from medflow.records import Bundle, PixelSpec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scored.data(tmp_path_factory.mktemp("data") / "pixels")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory) -> Bundle:
    return handmade.bundle(tmp_path_factory.mktemp("onnx") / "bundle")


@pytest.fixture(scope="module")
def torch_bundle(tmp_path_factory) -> Bundle:
    root = tmp_path_factory.mktemp("torch")
    rows, pixels = squares.data(root / "pixels", rows=8)
    return squares.torch_bundle(root / "bundle", squares.UNET, rows, pixels)


def test_an_onnx_bundle_answers_what_its_graph_computes(onnx, data):
    rows, pixels = data
    store = scoring.open_rows(rows, pixels, onnx.card.preprocess.pixels)
    images = store.images(np.arange(5))
    found = scoring.open_scorer(onnx)(images)
    assert list(found) == ["diagnosis", "lung"]
    for name, expected in handmade.logits(images).items():
        assert found[name].dtype == np.float32 and found[name].shape == expected.shape
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_torch_bundle_answers_like_its_network(torch_bundle):
    import torch

    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    found = scoring.open_scorer(torch_bundle)(images)
    with torch.no_grad():
        expected = models.load(torch_bundle)(torch.from_numpy(images))
    assert {name: value.shape for name, value in found.items()} == {"diagnosis": (3, 2), "lung": (3, 1, 32, 32)}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5)


def test_read_only_pixels_are_scored_without_a_warning(torch_bundle, recwarn):
    images = np.zeros((1, 32, 32, 1), dtype=np.uint8)
    images.setflags(write=False)
    scoring.open_scorer(torch_bundle)(images)
    assert not [item for item in recwarn if "writable" in str(item.message)]


@pytest.mark.parametrize("size", [1, 7, 40, 64])
def test_batches_cover_every_row_once_in_order(onnx, data, size):
    rows, pixels = data
    store = scoring.open_rows(rows, pixels, onnx.card.preprocess.pixels)
    scorer = scoring.open_scorer(onnx)
    found = scoring.label_logits(scorer, rows, store, onnx.card.heads, batch_size=size)
    assert list(found) == ["diagnosis"]
    expected = handmade.logits(store.images(rows.pixel_rows()))["diagnosis"]
    np.testing.assert_allclose(found["diagnosis"], expected, atol=1e-5)


def test_rows_are_scored_in_their_own_order(onnx, data):
    rows, pixels = data
    store = scoring.open_rows(rows, pixels, onnx.card.preprocess.pixels)
    scorer = scoring.open_scorer(onnx)
    turned = rows.take(np.arange(len(rows))[::-1])
    forward = scoring.label_logits(scorer, rows, store, onnx.card.heads)["diagnosis"]
    backward = scoring.label_logits(scorer, turned, store, onnx.card.heads)["diagnosis"]
    np.testing.assert_array_equal(backward, forward[::-1])


def test_altered_or_missing_weights_are_refused(tmp_path: Path):
    bundle = handmade.bundle(tmp_path / "bundle")
    bundle.weights.write_bytes(bundle.weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="sha256"):
        scoring.open_scorer(bundle)
    bundle.weights.unlink()
    with pytest.raises(ArtifactError, match=r"has no model\.onnx"):
        scoring.open_scorer(bundle)


@pytest.mark.parametrize("images", [np.zeros((1, 16, 16, 1), np.uint8), np.zeros((1, 32, 32, 1), np.float32)])
def test_images_of_another_shape_or_type_are_refused(onnx, torch_bundle, images):
    for bundle in (onnx, torch_bundle):
        with pytest.raises(DataError, match=r"expected uint8 \(n, 32, 32, 1\)"):
            scoring.open_scorer(bundle)(images)


def test_pixels_packed_otherwise_are_refused(data):
    rows, pixels = data
    with pytest.raises(DataError, match=r"stored as 32x32x1 \(stretch\); the model reads 64x64x1 \(stretch\)"):
        scoring.open_rows(rows, pixels, PixelSpec(height=64, width=64, channels=1))
    with pytest.raises(DataError, match=r"the model reads 32x32x1 \(pad\)"):
        scoring.open_rows(rows, pixels, PixelSpec(height=32, width=32, channels=1, fit="pad"))


def test_latency_is_measured_on_one_thread_and_leaves_torch_as_it_was(onnx, torch_bundle):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert 0 < scoring.latency_ms(onnx, repeats=3) < scoring.latency_ms(torch_bundle, repeats=3) < 5000
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_onnx_bundle_is_scored_without_torch(onnx):
    code = f"""
import sys, numpy
from pathlib import Path
from medflow.records import Bundle
from medflow.scoring import open_scorer
open_scorer(Bundle.open(Path({str(onnx.root)!r})))(numpy.zeros((1, 32, 32, 1), numpy.uint8))
print("torch" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"

"""quantize: smaller, near enough, the normalization exact, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import squares
import torch

from medflow import quantize as quantizing
from medflow.config.sections import ExportConfig, QuantizeConfig
from medflow.errors import ModelError
from medflow.export import export_onnx
from medflow.graph import Graph, check_golden
from medflow.quantize import WEIGHTED, quantize, signal_to_noise
from medflow.records import Bundle, Manifest, Pixels

CONFIG = QuantizeConfig(calibration_images=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Pixels]:
    torch.set_num_threads(1)
    return squares.data(tmp_path_factory.mktemp("data") / "pixels")


@pytest.fixture(scope="module", params=[squares.RESNET, squares.UNET], ids=lambda model: model.key)
def pair(
    request: pytest.FixtureRequest, data: tuple[Manifest, Pixels], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Bundle]:
    """An ONNX bundle and its INT8 variant."""
    work = tmp_path_factory.mktemp("quantize")
    val, pixels = data
    exported = export_onnx(
        squares.torch_bundle(work, request.param, val, pixels), val, pixels, ExportConfig(), work=work
    )
    return exported, quantize(exported, val, val, pixels, CONFIG, work=work)


def test_it_is_smaller_and_near(pair: tuple[Bundle, Bundle]) -> None:
    before, after = pair
    assert after.card.variant == "int8"
    assert after.card.bytes == after.weights.stat().st_size < 0.5 * before.card.bytes
    assert after.card.parity is not None
    assert after.card.parity.against == "onnx"
    assert after.card.parity.max_abs_difference < 0.05
    check_golden(after, Graph(after))


def test_the_card_says_what_stays_in_float(pair: tuple[Bundle, Bundle]) -> None:
    notes = " ".join(pair[1].card.notes)
    assert "calibrated on 16 training images" in notes
    assert "in float: " in notes
    assert "Gemm" in notes


def test_normalization_and_outputs_stay_in_float(pair: tuple[Bundle, Bundle]) -> None:
    graph = onnx.load(pair[1].weights).graph
    reached, before_the_first_quantizer = {"images"}, []
    for node in graph.node:
        if reached.intersection(node.input) and node.op_type != "QuantizeLinear":
            reached.update(node.output)
            before_the_first_quantizer.append(node.op_type)
    assert before_the_first_quantizer.count("Div") == 2  # by 255, by std
    assert {"Cast", "Transpose", "Sub"} <= set(before_the_first_quantizer)
    made_by = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        layer = made_by[output.name]
        while layer.op_type not in WEIGHTED:
            layer = made_by[layer.input[0]]
        assert layer.input[1] not in made_by, f"the weights of {layer.name} are dequantized"


def test_metadata_is_kept(pair: tuple[Bundle, Bundle]) -> None:
    before, after = ({item.key: item.value for item in onnx.load(bundle.weights).metadata_props} for bundle in pair)
    assert after == before


def test_any_batch(pair: tuple[Bundle, Bundle]) -> None:
    graph = Graph(pair[1])
    images = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    together = graph(images)
    for name, values in together.items():
        alone = np.concatenate([graph(images[row : row + 1])[name] for row in range(5)])
        np.testing.assert_allclose(alone, values, atol=1e-3)


def test_the_same_rows_give_the_same_bytes(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path
) -> None:
    again = quantize(pair[0], data[0], *data, CONFIG, work=tmp_path)
    assert again.weights.read_bytes() == pair[1].weights.read_bytes()
    assert again.digest() == pair[1].digest()


def test_a_graph_that_cannot_be_quantized_says_so(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "_ways", lambda graph: iter(()))
    with pytest.raises(ModelError, match="cannot be quantized") as raised:
        quantize(pair[0], data[0], *data, CONFIG, work=tmp_path)
    assert "quantize.enabled=false" in raised.value.hint


def test_torch_and_int8_bundles_are_refused(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"\(int8\) cannot be quantized"):
        quantize(pair[1], data[0], *data, CONFIG, work=tmp_path)


@pytest.mark.parametrize(("flags", "vnni"), [("fpu avx2 avx512_vnni", True), ("avx_vnni", True), ("avx2", False)])
def test_reduce_range_follows_the_processor(
    flags: str, vnni: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(quantizing, "CPUINFO", tmp_path / "cpuinfo")
    assert quantizing._reduce_range("auto") is not vnni
    assert quantizing._reduce_range("on") is True
    assert quantizing._reduce_range("off") is False


def test_signal_to_noise() -> None:
    signal = {"a": np.array([[1.0, -1.0], [-1.0, 1.0]])}
    assert signal_to_noise(signal, {"a": signal["a"] * 1.1}) == pytest.approx(20.0)
    assert signal_to_noise(signal, {"a": signal["a"] * 1.01}) == pytest.approx(40.0)

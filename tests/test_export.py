"""export_onnx: the graph says what torch says, for any batch, and knows what it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import squares
import torch

from medflow.config.sections import ExportConfig, ModelConfig, TimmModel
from medflow.errors import ModelError
from medflow.export import export_onnx
from medflow.graph import Graph, check_golden
from medflow.records import Bundle, Manifest, Pixels
from medflow.scoring import open_scorer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Pixels]:
    torch.set_num_threads(1)
    return squares.data(tmp_path_factory.mktemp("data") / "pixels")


@pytest.fixture(scope="module", params=[squares.RESNET, squares.UNET], ids=lambda model: model.key)
def pair(
    request: pytest.FixtureRequest, data: tuple[Manifest, Pixels], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Bundle]:
    """A torch bundle and its export."""
    work = tmp_path_factory.mktemp("export")
    bundle = squares.torch_bundle(work, request.param, *data)
    return bundle, export_onnx(bundle, *data, ExportConfig(), work=work)


def test_the_graph_answers_like_torch_for_any_batch(pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels]) -> None:
    before, after = (open_scorer(bundle) for bundle in pair)
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    for count in (1, 2, 5):
        expected, found = before(images[:count]), after(images[:count])
        assert set(found) == {head.name for head in pair[0].card.heads}
        for name in expected:
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], expected[name], atol=2e-4)


def test_the_file_stands_alone(pair: tuple[Bundle, Bundle]) -> None:
    graph = onnx.load(pair[1].weights)
    onnx.checker.check_model(graph, full_check=True)
    facts = json.loads(next(item.value for item in graph.metadata_props if item.key == "medflow"))
    assert [head["labels"] for head in facts["heads"]] == [list(head.labels) for head in pair[0].card.heads]
    assert facts["preprocess"]["mean"] == [0.3]
    assert graph.opset_import[0].version >= 17
    session = onnxruntime.InferenceSession(pair[1].weights, providers=["CPUExecutionProvider"])
    assert (session.get_inputs()[0].name, session.get_inputs()[0].type) == ("images", "tensor(uint8)")


def test_the_card_states_parity_and_the_golden_set_holds(pair: tuple[Bundle, Bundle]) -> None:
    card = pair[1].card
    assert card.variant == "onnx"
    assert card.parity is not None
    assert card.parity.against == "torch"
    assert card.parity.images == 48
    assert 0 <= card.parity.max_abs_difference < 1e-4
    assert card.parity.decisions_agree == 1.0
    check_golden(pair[1], Graph(pair[1]))


def test_the_same_bundle_gives_the_same_bytes(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path
) -> None:
    again = export_onnx(pair[0], *data, ExportConfig(), work=tmp_path)
    assert again.weights.read_bytes() == pair[1].weights.read_bytes()
    assert again.digest() == pair[1].digest()
    assert str(tmp_path).encode() not in again.weights.read_bytes()


def test_a_difference_above_the_tolerance_is_refused(data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    bundle = squares.torch_bundle(tmp_path, squares.RESNET, *data)
    with pytest.raises(ModelError, match="differs from torch"):
        export_onnx(bundle, *data, ExportConfig(tolerance=1e-12), work=tmp_path)


def test_an_exported_bundle_is_not_exported_again(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="ONNX already"):
        export_onnx(pair[1], *data, ExportConfig(), work=tmp_path)


@pytest.mark.parametrize("opset", [17, 21])
def test_newer_opsets(opset: int, data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    bundle = squares.torch_bundle(tmp_path, squares.RESNET, *data)
    after = export_onnx(bundle, *data, ExportConfig(opset=opset), work=tmp_path)
    assert onnx.load(after.weights).opset_import[0].version == opset


@pytest.mark.parametrize("name", ["densenet121", "tf_efficientnetv2_b0", "mobilenetv3_small_050"])
def test_other_families(name: str, data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    model: ModelConfig = TimmModel(name=name, pretrained="none", size=32, stats="unit")
    after = export_onnx(squares.torch_bundle(tmp_path, model, *data), *data, ExportConfig(), work=tmp_path)
    assert after.card.parity is not None
    assert after.card.parity.decisions_agree == 1.0

"""prune: fewer multiplications, a smaller and faster graph, and a card that rebuilds the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import squares
import torch
from safetensors.torch import load_file

from medflow import models
from medflow.config.sections import ExportConfig, ModelConfig, PruneConfig, Stage, TimmModel, TrainConfig
from medflow.errors import ModelError
from medflow.export import export_onnx
from medflow.prune import narrow, output_layers, prune
from medflow.records import Bundle, Manifest, Pixels
from medflow.scoring import open_scorer
from medflow.tracking import LocalFiles, Silent

CONFIG = PruneConfig(ratio=0.5, stage=Stage(epochs=1, lr=1e-4, patience=0))
TRAINING = TrainConfig(batch_size=16, accelerator="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Pixels]:
    torch.set_num_threads(1)
    return squares.data(tmp_path_factory.mktemp("data") / "pixels")


def run(bundle: Bundle, data: tuple[Manifest, Pixels], work: Path, config: PruneConfig = CONFIG) -> Bundle:
    files = LocalFiles(work / "checkpoints")
    return prune(bundle, data[0], *data, config, TRAINING, work=work, tracker=Silent(), checkpoints=files)


@pytest.fixture(scope="module", params=[squares.RESNET, squares.UNET], ids=lambda model: model.key)
def pair(
    request: pytest.FixtureRequest, data: tuple[Manifest, Pixels], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Bundle]:
    """A torch bundle and the same pruned by half."""
    work = tmp_path_factory.mktemp("prune")
    bundle = squares.torch_bundle(work, request.param, *data)
    return bundle, run(bundle, data, work)


def test_channels_really_leave(pair: tuple[Bundle, Bundle]) -> None:
    before, after = pair
    assert after.card.variant == "pruned"
    assert after.card.parameters < 0.5 * before.card.parameters
    assert after.weights.stat().st_size < 0.5 * before.weights.stat().st_size
    tensors = load_file(after.weights)
    assert (
        sum(tensor.numel() for name, tensor in tensors.items() if "running" not in name) < 0.5 * before.card.parameters
    )
    assert after.card.macs
    assert "multiply-adds" in after.card.notes[-1]
    assert after.card.parity is not None
    assert after.card.parity.against == "torch"


def test_widths_are_whole_steps(pair: tuple[Bundle, Bundle]) -> None:
    assert pair[1].card.pruned
    assert all(layer.kept_out % CONFIG.round_to == 0 for layer in pair[1].card.pruned if layer.kept_out > 3)


def test_outputs_keep_their_labels(pair: tuple[Bundle, Bundle]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    before, after = (open_scorer(bundle)(images) for bundle in pair)
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}


def test_the_card_rebuilds_the_network(pair: tuple[Bundle, Bundle]) -> None:
    after = pair[1]
    stored = load_file(after.weights)
    rebuilt = models.load(Bundle.open(after.root))
    assert {name: tuple(value.shape) for name, value in rebuilt.state_dict().items()} == {
        name: tuple(value.shape) for name, value in stored.items()
    }
    golden = load_file(after.golden)
    with torch.inference_mode():
        logits = rebuilt(golden["image"])
    for name, value in logits.items():
        torch.testing.assert_close(value, golden[name], atol=1e-5, rtol=1e-5)


def test_the_graph_is_smaller(pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    before, after = (export_onnx(bundle, *data, ExportConfig(), work=tmp_path / bundle.card.variant) for bundle in pair)
    assert after.card.variant == "pruned_onnx"
    assert after.weights.stat().st_size < 0.55 * before.weights.stat().st_size
    assert after.card.pruned == pair[1].card.pruned


def test_the_same_bundle_gives_the_same_weights(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path
) -> None:
    again = run(pair[0], data, tmp_path)
    assert again.weights.read_bytes() == pair[1].weights.read_bytes()


@pytest.mark.parametrize("name", ["densenet121", "tf_efficientnetv2_b0", "mobilenetv3_small_050", "resnext26ts"])
def test_other_families_rebuild(name: str, data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    model: ModelConfig = TimmModel(name=name, pretrained="none", size=32, stats="unit")
    bundle = squares.torch_bundle(tmp_path, model, *data)
    network, layers = narrow(bundle, PruneConfig())
    assert layers
    assert sum(item.numel() for item in network.parameters()) < 0.8 * bundle.card.parameters
    assert [layer.out_features for layer in output_layers(network)] == [2]


def test_what_cannot_be_pruned_says_so(data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    model = TimmModel(name="test_mambaout", pretrained="none", size=32, stats="unit")
    with pytest.raises(ModelError, match="cannot be pruned") as raised:
        narrow(squares.torch_bundle(tmp_path, model, *data), CONFIG)
    assert "prune.enabled=false" in raised.value.hint


def test_a_ratio_that_removes_nothing_is_refused(pair: tuple[Bundle, Bundle]) -> None:
    with pytest.raises(ModelError, match="removes none"):
        narrow(pair[0], PruneConfig(ratio=0.01, round_to=1024))


def test_a_pruned_bundle_is_not_pruned_again(
    pair: tuple[Bundle, Bundle], data: tuple[Manifest, Pixels], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="expected variant torch"):
        run(pair[1], data, tmp_path)

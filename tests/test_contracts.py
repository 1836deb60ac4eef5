"""Contracts over the registry of model kinds: every kind with every head it may have, through the whole way.

Shapes, one step that lowers the loss and saved weights are in test_models; here are the graph and the pruned network,
the families that configs/models.yaml names, and the seeds' own models, built on torch's meta device, where a network
has shapes and no numbers.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

import numpy as np
import pytest
import squares
import timm
import torch
from safetensors.torch import save_file
from tiny import FINDINGS, LABELS, REGION, SIZE, TINY, draw, preprocess
from torch import nn

from medflow import models
from medflow.config._yaml import read_document
from medflow.config.keys import MODEL_KINDS
from medflow.config.places import shipped
from medflow.config.reading import load
from medflow.config.sections import (
    ExportConfig,
    ModelConfig,
    PruneConfig,
    QuantizeConfig,
    SmpModel,
    TimmModel,
)
from medflow.export import export_onnx, write_graph
from medflow.graph import Graph
from medflow.prune import narrow
from medflow.quantize import quantize
from medflow.records import Bundle, DatasetCard, HeadSpec, Manifest, ModelCard, Pixels

#: Kinds that need more than an image have contracts of their own.
ELSEWHERE = frozenset({"image_text"})
MASKED = frozenset({"monai_unet", "smp"})
LABEL_HEADS = ((LABELS,), (FINDINGS,))
MASK_HEADS = ((REGION,), (LABELS, REGION))
CASES = [
    pytest.param(model, heads, id=f"{kind}-{'+'.join(head.kind for head in heads)}")
    for kind, model in TINY.items()
    for heads in (*LABEL_HEADS, *(MASK_HEADS if kind in MASKED else ()))
]
CARD = DatasetCard(name="tiny", title="Tiny", heads=(LABELS, FINDINGS, REGION), channels=1, grouped_by="patient")


def bundle_of(network: nn.Module, model: ModelConfig, heads: tuple[HeadSpec, ...], size: int, root: Path) -> Bundle:
    """A network's weights and a card, without a golden set."""
    card = ModelCard(
        name=f"tiny/{model.key}", variant="torch", dataset=CARD, heads=heads, preprocess=preprocess(size),
        model=model.model_dump(mode="json"), weights_from="none", data_digest="", weights_digest="", bytes=0,
        parameters=sum(item.numel() for item in network.parameters()),
    )  # fmt: skip
    save_file(models.tensors_of(network), root / Bundle.TORCH)
    return Bundle(root=root, card=card)


def test_every_kind_has_a_tiny_one() -> None:
    assert set(TINY) == set(MODEL_KINDS) - ELSEWHERE


@pytest.mark.parametrize(("model", "heads"), CASES)
def test_the_graph_answers_like_torch_for_any_batch(
    model: ModelConfig, heads: tuple[HeadSpec, ...], tmp_path: Path
) -> None:
    network = models.build(model, heads, preprocess(), seed=1)
    _stir(network)
    torch_bundle = bundle_of(network, model, heads, SIZE, tmp_path)
    bundle = Bundle(root=tmp_path, card=torch_bundle.card.model_copy(update={"variant": "onnx"}))
    write_graph(models.load(torch_bundle), bundle.card, bundle.weights, opset=17)
    graph, images = Graph(bundle), draw(5, seed=2)[0]
    for count in (1, 5):
        found = graph(images[:count])
        with torch.inference_mode():
            expected = network.eval()(torch.from_numpy(images[:count]))
        for head in heads:
            np.testing.assert_allclose(found[head.name], expected[head.name].numpy(), atol=1e-4)


@pytest.mark.parametrize(("model", "heads"), CASES)
def test_pruned_and_rebuilt_it_is_smaller_and_the_same(
    model: ModelConfig, heads: tuple[HeadSpec, ...], tmp_path: Path
) -> None:
    """``narrow`` itself compares the rebuilt network with the pruned one, and refuses a difference."""
    network = models.build(model, heads, preprocess(), seed=1)
    _stir(network)
    pruned, layers = narrow(bundle_of(network, model, heads, SIZE, tmp_path), PruneConfig(round_to=4))
    assert layers
    assert _parameters(pruned) < _parameters(network)
    assert list(pruned(torch.from_numpy(draw(2, seed=2)[0]))) == [head.name for head in heads]


#: Of each family that the seeds name, or that works differently inside: attention, layer norms, groups, squeezing.
FAMILIES = [
    *(TimmModel(name=name, size=SIZE, pretrained="none") for name in ("test_vit", "test_convnext", "test_convnext2")),
    *(TimmModel(name=name, size=SIZE, pretrained="none") for name in ("test_efficientnet", "regnety_002")),
    TimmModel(name="test_vit_relpos", size=SIZE, pretrained="none"),
    TimmModel(name="swin_tiny_patch4_window7_224", size=SIZE, pretrained="none"),
    *(
        SmpModel(name=name, encoder=encoder, size=64, pretrained="none")
        for name, encoder in (
            ("unetplusplus", "test_efficientnet"),
            ("deeplabv3", "mobilenet_v2"),
            ("deeplabv3plus", "mobilenet_v2"),
            ("segformer", "mit_b0"),
            ("unet", "test_convnext"),
        )
    ),
]


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.key)
def test_each_family_is_exported_and_pruned(model: ModelConfig, tmp_path: Path) -> None:
    heads = (LABELS, REGION) if model.kind in MASKED else (LABELS,)
    size = model.size or 0
    bundle = bundle_of(models.build(model, heads, preprocess(size)), model, heads, size, tmp_path)
    pruned, _ = narrow(bundle, PruneConfig())
    assert _parameters(pruned) < 0.9 * bundle.card.parameters
    onnx = Bundle(root=tmp_path, card=bundle.card.model_copy(update={"variant": "pruned_onnx"}))
    write_graph(pruned, onnx.card, onnx.weights, opset=17)
    images = draw(3, seed=2, size=size)[0]
    with torch.inference_mode():
        expected = pruned.eval()(torch.from_numpy(images))
    for name, values in Graph(onnx)(images).items():
        np.testing.assert_allclose(values, expected[name].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_the_hidden_channels_that_say_nothing_leave_first(name: str, tmp_path: Path) -> None:
    """A third of each MLP's hidden units is set to 0; pruned of these, the network says what it said before."""
    model = TimmModel(name=name, size=SIZE, pretrained="none")
    network = models.build(model, (LABELS,), preprocess()).eval()
    for block in [module for module in network.modules() if hasattr(module, "fc1")]:
        silent = torch.randperm(block.fc1.out_features, generator=torch.Generator().manual_seed(3))
        silent = silent[: block.fc1.out_features // 3]
        for tensor in (block.fc1.weight, block.fc1.bias, block.fc2.weight.T):
            tensor.data[silent] = 0.0
    pruned, layers = narrow(bundle_of(network, model, (LABELS,), SIZE, tmp_path), PruneConfig(ratio=0.25))
    images = torch.from_numpy(draw(3, seed=2)[0])
    assert layers
    with torch.inference_mode():
        torch.testing.assert_close(pruned(images), network(images), atol=1e-5, rtol=1e-4)


# -- 8 bits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Pixels]:
    torch.set_num_threads(1)
    return squares.data(tmp_path_factory.mktemp("data") / "pixels", rows=16)


INT8 = [
    TimmModel(name="test_vit", size=32, pretrained="none"),
    TimmModel(name="test_convnext2", size=32, pretrained="none"),
    TINY["smp"],
    TINY["dual_path"],
]


@pytest.mark.parametrize("model", INT8, ids=lambda model: model.key)
def test_in_8_bits_it_runs_and_is_near(model: ModelConfig, data: tuple[Manifest, Pixels], tmp_path: Path) -> None:
    bundle = squares.torch_bundle(tmp_path, model, *data)
    exported = export_onnx(bundle, *data, ExportConfig(), work=tmp_path)
    after = quantize(exported, data[0], *data, QuantizeConfig(calibration_images=16), work=tmp_path)
    assert after.card.variant == "int8"
    assert after.card.parity is not None
    assert after.card.parity.max_abs_difference < 0.1


# -- the models that the seeds and configs/models.yaml name ----------------------------------------

SEEDS = [
    "resnet50", "tf_efficientnet_b4", "densenet121", "convnextv2_tiny", "convnextv2_base", "tf_efficientnetv2_s",
    "tf_efficientnetv2_m", "tf_efficientnetv2_l", "regnety_004", "regnety_006", "vit_tiny_patch16_224",
    "vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch16_384", "vit_large_patch16_224",
    "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224",
]  # fmt: skip


def answers_of(model: ModelConfig, heads: tuple[HeadSpec, ...], channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the logits for two images, by head."""
    size = model.size or 0
    with torch.device("meta"):
        network = models.build(model, heads, preprocess(size, channels=channels)).eval()
        logits = network(torch.zeros((2, size, size, channels), dtype=torch.uint8))
    return {name: tuple(value.shape) for name, value in logits.items()}


def filled(text: str, folder: Path) -> ModelConfig:
    """The model of a YAML's one line, completed from configs/models.yaml."""
    (folder / "run.yaml").write_text(f"dataset: phantom\nmodels: [{text}]\n")
    return load(folder / "run.yaml").models[0]


@pytest.mark.parametrize("name", SEEDS)
def test_a_seeds_classifier_is_one_line(name: str, tmp_path: Path) -> None:
    head = "head_norm: layer, hidden: [128], head_dropout: [0.3, 0.25]"
    model = filled(f"{{kind: timm, name: {name}, {head}}}", tmp_path)
    assert model.size and model.stats == "imagenet"
    assert answers_of(model, (LABELS,), 3) == {"diagnosis": (2, 3)}


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50", "efficientnet-b3"])
@pytest.mark.parametrize("name", ["unet", "unetplusplus", "deeplabv3", "deeplabv3plus", "segformer"])
def test_a_seeds_segmenter_is_one_line(name: str, encoder: str, tmp_path: Path) -> None:
    model = filled(f"{{kind: smp, name: {name}, encoder: {encoder}}}", tmp_path)
    assert model.key == f"{name}_{encoder.replace('-', '_')}"
    assert answers_of(model, (LABELS, REGION), 3) == {"diagnosis": (2, 3), "region": (2, 1, 256, 256)}


@pytest.mark.parametrize("size", [96, 320])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_takes_other_sizes(name: str, size: int) -> None:
    model = TimmModel(name=name, size=size, pretrained="none")
    assert answers_of(model, (LABELS,), 1) == {"diagnosis": (2, 3)}


PATTERNS = [name for name in read_document(shipped() / "models.yaml").values if name != "default"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_of_models_yaml_matches_a_model_that_builds(pattern: str, tmp_path: Path) -> None:
    line = _line_for(pattern)
    model = filled(line, tmp_path)
    assert answers_of(model, (LABELS,), 3) == {"diagnosis": (2, 3)}


def _line_for(pattern: str) -> str:
    """One line of YAML whose model a pattern speaks for."""
    kinds = {"monai_unet": "{kind: monai_unet}", "dual_path_densenet121": "{kind: dual_path}"}
    for name in ("unet", "unetplusplus", "deeplabv3", "deeplabv3plus", "segformer"):
        kinds[f"{name}_resnet18"] = f"{{kind: smp, name: {name}, encoder: resnet18}}"
    kinds |= {name: f"{{kind: timm, name: {name}}}" for name in timm.list_models()}
    found = fnmatch.filter(kinds, pattern)
    assert found, f"{pattern} matches no model"
    return kinds[found[0]]


def test_the_third_seeds_head_layer_by_layer() -> None:
    """Pool, LayerNorm, dropout 0.3, 128 units, ReLU, dropout 0.25, labels."""
    model = TINY["timm"].model_copy(update={"head_norm": "layer", "hidden": (128,), "head_dropout": (0.3, 0.25)})
    network = models.build(model, (LABELS,), preprocess())
    kinds = [type(layer) for layer in network.heads["diagnosis"]]
    assert kinds == [nn.LayerNorm, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.p for layer in network.heads["diagnosis"] if isinstance(layer, nn.Dropout)] == [0.3, 0.25]


def test_the_second_seeds_head_layer_by_layer() -> None:
    """Dropout, 512 units, ReLU, dropout, labels."""
    network = models.build(TINY["timm"].model_copy(update={"hidden": (512,), "dropout": 0.5}), (LABELS,), preprocess())
    kinds = [type(layer) for layer in network.heads["diagnosis"]]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.p for layer in network.heads["diagnosis"] if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


# -- helpers --------------------------------------------------------------------------------------


@torch.no_grad()
def _stir(network: nn.Module) -> None:
    """Other running statistics than the first, as training leaves them, so that an error in batch norm shows."""
    network.train()
    network(torch.from_numpy(draw(8, seed=4)[0]))
    network.eval()


def _parameters(network: nn.Module) -> int:
    return sum(item.numel() for item in network.parameters())

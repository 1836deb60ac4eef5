"""Contract: every kind of model with every head that it may have."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FINDINGS, LABELS, REGION, SIZE, TINY, draw, preprocess

from medflow import models
from medflow.config.sections import DualPathModel, ModelConfig, MonaiUNet, SmpModel, TimmModel, TrainConfig
from medflow.errors import ModelError, WeightsUnavailable
from medflow.heads import Objective
from medflow.model_files import bring
from medflow.pretrained import load_pretrained
from medflow.records import (
    ChannelStats,
    Normalization,
    PixelIndex,
    Pixels,
    PixelSpec,
    PixelStore,
    PrunedLayer,
    file_digest,
)

TIMM, UNET = TINY["timm"], TINY["monai_unet"]
CASES = [(TIMM, (LABELS,)), (TIMM, (FINDINGS,)), (TIMM, (LABELS, FINDINGS))]
CASES += [
    (model, heads)
    for model in (UNET, TINY["smp"])
    for heads in ((LABELS,), (FINDINGS,), (REGION,), (LABELS, REGION), (FINDINGS, REGION))
]
CASES += [(TINY["dual_path"], (LABELS,)), (TINY["dual_path"], (LABELS, FINDINGS))]
EVERY = pytest.mark.parametrize(
    ("model", "heads"), CASES, ids=[f"{model.kind}-{'+'.join(head.kind for head in heads)}" for model, heads in CASES]
)


def images(rows: int = 6, channels: int = 1) -> torch.Tensor:
    return torch.from_numpy(draw(rows, seed=3)[0]).expand(-1, -1, -1, channels)


@EVERY
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_types(model, heads, channels):
    network = models.build(model, heads, preprocess(channels=channels)).eval()
    logits = network(images(2, channels))
    assert list(logits) == [head.name for head in heads]
    for head in heads:
        expected = (2, 1, SIZE, SIZE) if head.kind == "mask" else (2, len(head.labels))
        assert logits[head.name].shape == expected
        assert logits[head.name].dtype == torch.float32


@EVERY
def test_parameters_are_backbone_and_head(model, heads):
    network = models.build(model, heads, preprocess())
    backbone, head = network.parameters_of("backbone"), network.parameters_of("head")
    assert head and backbone
    assert {id(p) for p in backbone} | {id(p) for p in head} == {id(p) for p in network.parameters()}
    assert not {id(p) for p in backbone} & {id(p) for p in head}


def test_only_what_may_be_pretrained_is_backbone():
    """Pyramid, attention, decoder and heads are new, so that a recipe can train the encoder more slowly."""
    dual = models.build(TINY["dual_path"], (LABELS,), preprocess())
    smp = models.build(TINY["smp"], (LABELS, REGION), preprocess())
    new = {id(parameter) for network in (dual, smp) for parameter in network.parameters_of("head")}
    for module in (
        dual.neck.pyramid,
        dual.neck.global_attention,
        dual.neck.local_attention,
        smp.heads["region"].decoder,
    ):
        assert {id(parameter) for parameter in module.parameters()} <= new
    for network in (dual, smp):
        assert {id(p) for p in network.parameters_of("backbone")} == {id(p) for p in network.backbone.parameters()}


@EVERY
def test_a_step_lowers_the_loss(model, heads):
    torch.manual_seed(0)
    pixels, masks, classes = draw(12, seed=1)
    one_hot = torch.eye(3)[torch.from_numpy(classes)]
    truth = {"diagnosis": one_hot, "findings": one_hot[:, 1:], "region": torch.from_numpy(masks)}
    known = {"diagnosis": torch.ones(12) > 0, "findings": torch.ones(12, 2) > 0, "region": torch.ones(12) > 0}
    labels = {name: values.numpy() for name, values in truth.items()}
    objective = Objective(heads, labels, TrainConfig())
    network = models.build(model, heads, preprocess())

    def loss() -> torch.Tensor:
        return objective.total(objective.sums(network(torch.from_numpy(pixels)), truth, known))

    # Batch norm as in inference, no dropout: one function, of which the step must go downhill.
    network.eval()
    before = loss()
    before.backward()
    squared = sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * float(before) / squared * parameter.grad
        assert float(loss()) < float(before)


@EVERY
def test_saved_and_loaded_it_says_the_same_bit_for_bit(model, heads, tmp_path):
    network = models.build(model, heads, preprocess(), seed=5).eval()
    save_file(models.tensors_of(network), tmp_path / "model.safetensors")
    again = models.build(models.read_config(model.model_dump(mode="json")), heads, preprocess(), seed=6).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        first, second = network(images()), again(images())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_alone_initialises_and_the_global_generator_is_left():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = models.build(TIMM, (LABELS,), preprocess(), seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = models.build(TIMM, (LABELS,), preprocess(), seed=7)
    third = models.build(TIMM, (LABELS,), preprocess(), seed=8)
    weights = [network.parameters_of("backbone")[0] for network in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_pixels_are_normalized_inside():
    network = models.build(TIMM, (LABELS,), preprocess()).eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(images(2))
    expected = (images(2).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.25
    torch.testing.assert_close(seen[0], expected)


def test_the_first_seeds_network_is_rebuilt():
    """Parameter count of the network as the first seed writes it down, built here layer by layer."""
    from monai.networks.nets import UNet
    from torch import nn

    unet = UNet(2, 3, 64, (32, 64, 128, 256, 512), (2, 2, 2, 2), num_res_units=2, norm="BATCH", dropout=0.1)
    seg = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 1, 1))
    cls = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(64, 256), nn.ReLU(), nn.BatchNorm1d(256),
        nn.Dropout(0.3), nn.Linear(256, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Dropout(0.2), nn.Linear(128, 3),
    )  # fmt: skip
    expected = sum(p.numel() for part in (unet, seg, cls) for p in part.parameters())
    network = models.build(MonaiUNet(), (LABELS, REGION), preprocess(256, channels=3))
    assert sum(p.numel() for p in network.parameters()) == expected
    dropouts = [m.p for m in network.heads["diagnosis"] if isinstance(m, nn.Dropout)]
    assert dropouts == [0.5, 0.3, 0.2]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_100", "densenet121", "regnety_004", "test_vit"])
def test_any_timm_name_takes_its_pooled_width(name):
    model = TimmModel(name=name, size=SIZE, pretrained="none")
    logits = models.build(model, (LABELS,), preprocess()).eval()(images(2))
    assert logits["diagnosis"].shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "heads", "words"),
    [
        (TIMM, (LABELS, REGION), "no mask head"),
        (TimmModel(name="resnet10", size=SIZE), (LABELS,), "no model 'resnet10'"),
        (UNET.model_copy(update={"channels": (4, 8, 16, 32, 64, 64, 64)}), (LABELS,), "no multiple of 64"),
        (UNET.model_copy(update={"label_dropout": (0.1,)}), (LABELS,), "label_dropout"),
        (TINY["dual_path"], (LABELS, REGION), "no mask head"),
        (DualPathModel(encoder="test_vit", size=SIZE), (LABELS,), "4, 8, 16 and 32 times smaller"),
        (SmpModel(name="unet", encoder="resnet35", size=SIZE), (LABELS,), "an encoder 'resnet35'"),
        (SmpModel(name="unet", encoder="test_vit", size=SIZE), (LABELS,), "could not make unet over 'test_vit'"),
        (SmpModel(name="unet", encoder="mit_b0", size=SIZE, label_levels=(1, 5)), (LABELS,), "level 1 of encoder"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_hint(model, heads, words):
    with pytest.raises(ModelError, match=words) as error:
        models.build(model, heads, preprocess())
    assert error.value.hint


@pytest.mark.parametrize(
    ("model", "size", "words", "mended"),
    [
        (SmpModel(name="unet", encoder="mobilenet_v2"), 100, "no multiple of 32", 96),
        (SmpModel(name="deeplabv3plus", encoder="mobilenet_v2"), 100, "no multiple of 16", 96),
        (SmpModel(name="deeplabv3", encoder="mobilenet_v2"), 100, "no multiple of 8", 96),
        (TimmModel(name="test_vit"), 100, "no multiple of 16", 96),
        (MonaiUNet(), 100, "no multiple of 16", 96),
    ],
)
def test_an_odd_size_is_refused_and_the_hint_names_one_that_fits(model, size, words, mended):
    with pytest.raises(ModelError, match=words) as error:
        models.build(model, (LABELS,), preprocess(size))
    assert error.value.hint.endswith(f"`size` to {mended}")
    models.build(model, (LABELS,), preprocess(mended))


def test_every_level_that_a_label_head_reads_counts():
    wide = TINY["smp"].model_copy(update={"label_levels": (2, 3, 5)})
    network = models.build(wide, (LABELS,), preprocess()).eval()
    levels = network.backbone(torch.zeros(1, 1, SIZE, SIZE))
    last = [layer for layer in network.heads["diagnosis"].modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert last.in_features == sum(levels[level].shape[1] for level in (2, 3, 5))


# -- statistics ----------------------------------------------------------------------------------


def stores(channels: int) -> tuple[Normalization, Pixels]:
    spec = PixelSpec(height=SIZE, width=SIZE, channels=channels)
    stats = ChannelStats(height=SIZE, width=SIZE, mean=(0.1,) * channels, std=(0.2,) * channels)
    return Normalization(sizes=(stats,), images=1), Pixels(
        root=None, index=PixelIndex(rows=0, stores=(PixelStore(spec=spec, images=()),))
    )


@pytest.mark.parametrize(
    ("stats", "channels", "mean"),
    [
        ("unit", 1, (0.0,)),
        ("unit", 3, (0.0,) * 3),
        ("dataset", 3, (0.1,) * 3),
        ("imagenet", 3, (0.485, 0.456, 0.406)),
        ("imagenet", 1, (0.449,)),
    ],
)
def test_statistics_follow_the_policy(stats, channels, mean):
    model = TimmModel(name="resnet18", size=SIZE, stats=stats)
    assert models.preprocess_for(model, *stores(channels)).mean == pytest.approx(mean)


def test_a_size_that_is_not_stored_is_refused():
    with pytest.raises(ModelError, match="takes 64 pixels"):
        models.preprocess_for(TIMM.model_copy(update={"size": 64}), *stores(1))


# -- pretrained weights --------------------------------------------------------------------------


def filled(network: models.Network, model: ModelConfig) -> str:
    return load_pretrained(network, model, bring(model, Path("unused")).weights)


def test_weights_from_a_file_fill_the_backbone(tmp_path):
    source, path = models.build(TIMM, (LABELS,), preprocess(), seed=1), tmp_path / "w.safetensors"
    for tensors in (models.tensors_of(source), models.tensors_of(source.backbone) | {"fc.weight": torch.zeros(2)}):
        save_file(tensors, path)
        network = models.build(TIMM, (FINDINGS,), preprocess(), seed=2)
        said = filled(network, TIMM.model_copy(update={"pretrained": str(path)}))
        assert said == f"file w.safetensors, sha256:{file_digest(path)}"
        state = network.backbone.state_dict()
        assert all(torch.equal(state[name], value) for name, value in source.backbone.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(models.tensors_of(models.build(UNET, (LABELS,), preprocess())), path)
    network = models.build(TIMM, (LABELS,), preprocess())
    with pytest.raises(ModelError, match="tensors are missing"):
        filled(network, TIMM.model_copy(update={"pretrained": str(path)}))
    path.write_bytes(b"no tensors")
    with pytest.raises(WeightsUnavailable, match="no safetensors file"):
        filled(network, TIMM.model_copy(update={"pretrained": str(path)}))
    with pytest.raises(WeightsUnavailable, match="is no file"):
        filled(network, TIMM.model_copy(update={"pretrained": "imagnet"}))


IMAGENET = TimmModel(name="test_resnet.r160_in1k", size=SIZE)


def test_no_network_is_told_soon_and_names_both_ways_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    network = models.build(IMAGENET, (LABELS,), preprocess())
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"cannot be reached") as error:
        filled(network, IMAGENET)
    assert time.monotonic() - start < 10
    assert "model.pretrained=none" in error.value.hint and ".safetensors" in error.value.hint


def test_imagenet_weights_in_the_cache_need_no_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    color = models.build(IMAGENET, (LABELS,), preprocess(channels=3), seed=3).backbone
    in_the_cache(tmp_path, "timm/test_resnet.r160_in1k", "0", models.tensors_of(color))
    gray = models.build(IMAGENET, (LABELS,), preprocess(channels=1))
    assert filled(gray, IMAGENET) == "imagenet (timm test_resnet.r160_in1k)"
    wanted, found = color.state_dict(), gray.backbone.state_dict()
    first = next(name for name in wanted if wanted[name].shape != found[name].shape)
    torch.testing.assert_close(found[first], wanted[first].sum(1, keepdim=True))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if name != first)


def test_a_unet_has_no_imagenet_weights():
    network = models.build(UNET, (LABELS,), preprocess())
    with pytest.raises(ModelError, match="no ImageNet weights"):
        filled(network, UNET.model_copy(update={"pretrained": "imagenet"}))


def in_the_cache(cache, repository: str, revision: str, tensors) -> None:
    """A file of the hub as its client leaves it after a download."""
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(revision)
    save_file(tensors, snapshot / "model.safetensors")


ENCODERS = [
    SmpModel(name="unet", encoder="mobilenet_v2", size=SIZE),
    SmpModel(name="deeplabv3plus", encoder="mobilenet_v2", size=SIZE),
    SmpModel(name="unet", encoder="test_resnet.r160_in1k", size=SIZE),
    DualPathModel(encoder="test_resnet.r160_in1k", size=SIZE, pyramid=8),
]


@pytest.mark.parametrize("model", ENCODERS, ids=lambda model: model.key)
@pytest.mark.parametrize("given", ["imagenet", "file"])
def test_an_encoders_published_weights_reach_one_channel(model, given, tmp_path, monkeypatch):
    """From the hub's cache and from the same file beside it, with the first layer's three channels added up."""
    from huggingface_hub import constants
    from segmentation_models_pytorch.encoders import encoders, get_encoder

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if model.encoder in encoders:
        source = encoders[model.encoder]["pretrained_settings"]["imagenet"]
        repository, revision, said = source["repo_id"], source["revision"], f"imagenet (smp {model.encoder})"
        published = get_encoder(model.encoder, weights=None)
    else:
        repository, revision, said = f"timm/{model.encoder}", "0", f"imagenet (timm {model.encoder})"
        published = models.build(IMAGENET, (LABELS,), preprocess(channels=3)).backbone
    tensors = {name: torch.rand(value.shape).to(value.dtype) for name, value in models.tensors_of(published).items()}
    in_the_cache(tmp_path, repository, revision, tensors)
    path = str(next(tmp_path.rglob("model.safetensors")))
    network = models.build(model, (LABELS,), preprocess(), seed=4)
    pretrained = given if given == "imagenet" else path
    found = filled(network, model.model_copy(update={"pretrained": pretrained}))
    assert found == said if given == "imagenet" else found.startswith("file model.safetensors, sha256:")
    first = next(value for name, value in tensors.items() if value.ndim == 4)
    state = [value for value in network.backbone.state_dict().values() if value.ndim == 4]
    torch.testing.assert_close(state[0], first.sum(1, keepdim=True))
    assert all(any(torch.equal(value, tensor) for tensor in tensors.values()) for value in state[1:])


@pytest.mark.parametrize("model", [IMAGENET, *ENCODERS[2:]], ids=lambda model: model.key)
def test_a_file_that_lacks_what_begins_constant_is_refused(model, tmp_path, monkeypatch):
    """A bias and a norm begin as 0 and 1 in every network, so that their values tell nothing."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tensors = models.tensors_of(models.build(IMAGENET, (LABELS,), preprocess(channels=3)).backbone)
    lacking = [name for name in tensors if name.startswith("layer1.") and ".bn1." in name and "num" not in name]
    kept = {name: value for name, value in tensors.items() if name not in lacking}
    in_the_cache(tmp_path, f"timm/{IMAGENET.name}", "0", kept)
    network = models.build(model, (LABELS,), preprocess())
    with pytest.raises(ModelError, match=rf"lacks {len(lacking)} tensors of .*layer1\b.*bn1") as error:
        filled(network, model.model_copy(update={"pretrained": "imagenet"}))
    assert "pretrained=none" in error.value.hint
    with pytest.raises(ModelError, match="tensors are missing"):
        path = str(next(tmp_path.rglob("model.safetensors")))
        filled(network, model.model_copy(update={"pretrained": path}))


def test_an_encoder_out_of_reach_is_told_as_a_classifier_is(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for model in (ENCODERS[0], ENCODERS[2], ENCODERS[3]):
        network = models.build(model, (LABELS,), preprocess())
        with pytest.raises(WeightsUnavailable, match="cannot be reached") as error:
            filled(network, model)
        assert "model.pretrained=none" in error.value.hint and f"{model.key}.safetensors" in error.value.hint


def test_an_encoder_without_imagenet_weights_says_so():
    model = SmpModel(name="unet", encoder="dpn68b", size=SIZE)
    with pytest.raises(ModelError, match="no ImageNet weights"):
        filled(models.build(model, (LABELS,), preprocess()), model)


# -- pruned layers -------------------------------------------------------------------------------


def test_pruned_layers_are_rebuilt_narrow():
    model = TimmModel(name="resnet10t", size=SIZE, pretrained="none")
    block = "backbone.layer1.0."
    pruned = (
        PrunedLayer(name=block + "conv1", kept_in=64, kept_out=24),
        PrunedLayer(name=block + "bn1", kept_in=24, kept_out=24),
        PrunedLayer(name=block + "conv2", kept_in=24, kept_out=64),
    )
    network = models.build(model, (LABELS,), preprocess(), pruned=pruned).eval()
    assert network.get_submodule(block + "conv1").weight.shape == (24, 64, 3, 3)
    assert network.get_submodule(block + "bn1").running_var.shape == (24,)
    assert network(images(2))["diagnosis"].shape == (2, 3)


def test_a_layer_that_cannot_be_narrowed_is_refused():
    pruned = (PrunedLayer(name="heads.diagnosis", kept_in=1, kept_out=1),)
    with pytest.raises(ModelError, match="Sequential"):
        models.build(TIMM, (LABELS,), preprocess(), pruned=pruned)

"""Training with each of its options: it resumes bit for bit, and does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_train import MODEL, Recorded, Stopped, StopsAt, data, digest, run

from medflow import models
from medflow.checkpoint import Checkpoints
from medflow.config.sections import Augment, Mixing, MonaiUNet, Stage, TimmModel, TrainConfig
from medflow.errors import ConfigError, ModelError, TrainingError
from medflow.fit import fit
from medflow.fit.loop import train_here
from medflow.tracking import LocalFiles, Silent
from medflow.train import train

STILL = Augment(rotate=0.0)
PLAIN = TrainConfig(batch_size=4, stages=(Stage(epochs=2, lr=1e-3),), augment=STILL, checkpoint_seconds=0.0)
VIT = TimmModel(name="test_vit", size=tiny.SIZE, pretrained="none", stats="unit", dropout=0.0)
HEADS = (tiny.LABELS, tiny.FINDINGS)
ALL_OPTIONS = PLAIN.model_copy(
    update={
        "stages": (
            Stage(epochs=2, lr=1e-2, optimizer="sgd", nesterov=True, freeze="backbone", unfreeze_blocks=2),
            Stage(epochs=4, lr=1e-3, lr_backbone=1e-4, schedule="plateau", plateau_patience=0, patience=0),
        ),
        "sampler": "balanced",
        "mixing": Mixing(mixup=0.2, cutmix=1.0, probability=0.7),
        "ema_decay": 0.9,
        "gradient_checkpointing": True,
        "augment": Augment(rotate=0.5),
    }
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learn(folder: Path, config: TrainConfig, model=VIT, heads=(tiny.LABELS,), rows: int = 24):
    """The network after ``config``, and the log."""
    source = data(folder, heads, rows)
    network = models.build(model, source.heads, source.preprocess)
    store = Checkpoints(LocalFiles(folder / "c"), "a" * 64)
    return network, fit(network, source, config, tracker=Silent(), checkpoints=store)


def difference(first, second) -> float:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((one.double() - two.double()).abs().max()) for one, two in pairs)


# -- together ------------------------------------------------------------------------------------


def test_with_every_option_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole", ALL_OPTIONS, heads=HEADS)
    for writes in (3, 19):
        folder = tmp_path / str(writes)
        files = StopsAt(folder / "checkpoints", writes)
        with pytest.raises(Stopped):
            parts = tiny.make(folder / "pixels", rows=36)
            train(*parts, HEADS, MODEL, ALL_OPTIONS, work=folder / "work", tracker=Silent(), checkpoints=files)
        assert digest(run(folder, ALL_OPTIONS, heads=HEADS)) == digest(whole)
    rates = [entry.lr for entry in whole.card.training.epochs[2:]]
    assert min(rates) < max(rates)  # a plateau was met


# -- one by one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [VIT, MODEL], ids=lambda model: model.name)
def test_features_of_a_frozen_backbone_are_computed_once_and_change_nothing(tmp_path, capsys, model):
    frozen = PLAIN.model_copy(
        update={"stages": (Stage(epochs=3, lr=1e-2, freeze="backbone"), Stage(epochs=1, lr=1e-4))}
    )
    (kept, log), (anew, other) = (
        learn(tmp_path / str(size), frozen.model_copy(update={"feature_cache_mb": size}), model) for size in (64, 0)
    )
    said = capsys.readouterr().err
    assert said.count("features of 24 images are kept") == 1
    assert [entry.val_loss for entry in log.epochs] == pytest.approx(
        [entry.val_loss for entry in other.epochs], rel=1e-5
    )
    assert difference(kept, anew) < 1e-4


def test_features_are_not_kept_where_images_change_or_memory_is_short(tmp_path, capsys):
    stage = Stage(epochs=1, lr=1e-2, freeze="backbone")
    for number, change in enumerate(
        [{"augment": Augment(rotate=0.5)}, {"mixing": Mixing(mixup=1.0)},
         {"stages": (stage.model_copy(update={"unfreeze_blocks": 1}),)}]
    ):  # fmt: skip
        learn(tmp_path / str(number), PLAIN.model_copy(update={"stages": (stage,)} | change))
    unet = MonaiUNet(size=tiny.SIZE, channels=(8, 16), features=512, label_hidden=(8,), label_dropout=(0.0, 0.0))
    short = PLAIN.model_copy(update={"stages": (stage,), "feature_cache_mb": 16})
    learn(tmp_path / "unet", short, unet)
    assert "are kept" not in capsys.readouterr().err


def test_activations_computed_twice_give_the_same_weights(tmp_path):
    trained, passes = [], []
    for twice in (False, True):
        source = data(tmp_path / str(twice))
        network = models.build(VIT, source.heads, source.preprocess)
        seen: list[int] = []
        network.backbone.blocks[0].register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        config = PLAIN.model_copy(update={"gradient_checkpointing": twice})
        store = Checkpoints(LocalFiles(tmp_path / str(twice) / "c"), "a" * 64)
        fit(network, source, config, tracker=Silent(), checkpoints=store)
        trained.append(network)
        passes.append(len(seen))
    assert difference(*trained) == 0.0
    steps, validations = 2 * 4, 2 * 2
    assert passes == [steps + validations, 2 * steps + validations]
    assert not trained[1].backbone.grad_checkpointing


@pytest.mark.parametrize(
    "model",
    [MonaiUNet(size=tiny.SIZE, channels=(4, 8), features=4, label_hidden=(4,), label_dropout=(0.0, 0.0))],
    ids=lambda model: model.name,
)
def test_a_network_that_cannot_compute_twice_says_so(tmp_path, model):
    with pytest.raises(ModelError, match="cannot compute its activations twice"):
        learn(tmp_path, PLAIN.model_copy(update={"gradient_checkpointing": True}), model)


def test_the_average_is_what_is_validated_and_kept(tmp_path):
    config = PLAIN.model_copy(update={"ema_decay": 0.9, "monitor": "loss"})
    network, log = learn(tmp_path / "average", config)
    plain, _ = learn(tmp_path / "plain", config.model_copy(update={"ema_decay": 0.0}))
    assert difference(network, plain) > 0
    source = data(tmp_path / "again")
    val = source.examples(source.val)
    with torch.no_grad():
        logits = network(val.batch(np.arange(len(val))).images)["diagnosis"]
    weights = torch.tensor(log.class_weights["diagnosis"])
    truth = torch.from_numpy(val.targets["diagnosis"]).argmax(1)
    mean = torch.nn.functional.cross_entropy(logits, truth, weight=weights, reduction="none").mean()
    assert float(mean) == pytest.approx(-log.best_score, rel=1e-4)


def test_the_last_blocks_alone_learn(tmp_path):
    source = data(tmp_path)
    network = models.build(MODEL, source.heads, source.preprocess)
    before = models.tensors_of(network)
    config = PLAIN.model_copy(update={"stages": (Stage(epochs=1, lr=1e-2, freeze="backbone", unfreeze_blocks=1),)})
    fit(network, source, config, tracker=Silent(), checkpoints=Checkpoints(LocalFiles(tmp_path / "c"), "a" * 64))
    changed = {name for name, value in models.tensors_of(network).items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("backbone.")} == {"layer4"}


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_an_epoch_has_as_many_images_as_there_are_rows(tmp_path, sampler):
    tracker = Recorded()
    run(tmp_path, PLAIN.model_copy(update={"sampler": sampler}), tracker=tracker)
    assert tracker.steps[1]["train/loss"] > 0


def test_a_row_drawn_again_is_augmented_otherwise_in_training(tmp_path):
    source, seen = data(tmp_path, rows=48), []
    network = models.build(VIT, source.heads, source.preprocess)
    network.backbone.register_forward_pre_hook(
        lambda module, given: seen.extend(image.numpy().tobytes() for image in given[0]) if module.training else None
    )
    config = PLAIN.model_copy(
        update={"sampler": "balanced", "augment": Augment(noise=1.0), "stages": (Stage(epochs=1, lr=1e-3),)}
    )
    fit(network, source, config, tracker=Silent(), checkpoints=Checkpoints(LocalFiles(tmp_path / "c"), "a" * 64))
    assert len(set(seen)) == len(seen) == len(source.train)


def test_mixing_reaches_a_mask(tmp_path):
    model = MonaiUNet(size=tiny.SIZE, channels=(4, 8), features=4, label_hidden=(4,), label_dropout=(0.0, 0.0))
    for mixing in (Mixing(mixup=0.4), Mixing(cutmix=1.0)):
        config = PLAIN.model_copy(update={"mixing": mixing, "stages": (Stage(epochs=4, lr=1e-2),)})
        _, log = learn(tmp_path / str(mixing.mixup), config, model, (tiny.LABELS, tiny.REGION))
        assert log.epochs[-1].losses["region"] < log.epochs[0].losses["region"]


# -- memory --------------------------------------------------------------------------------------


class Tight(torch.nn.Module):
    """A backbone on a device that holds ``images`` at once."""

    def __init__(self, inner: torch.nn.Module, images: int) -> None:
        super().__init__()
        self.inner, self.images = inner, images

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(pixels)


def tight(folder: Path, images: int, config: TrainConfig, writes: int = 0):
    source = data(folder)
    network = models.build(VIT, source.heads, source.preprocess)
    network.backbone = Tight(network.backbone, images)
    files = StopsAt(folder / "c", writes) if writes else LocalFiles(folder / "c")
    return network, fit(network, source, config, tracker=Silent(), checkpoints=Checkpoints(files, "a" * 64))


def test_out_of_memory_halves_the_batch_and_keeps_the_step(tmp_path, capsys):
    config = PLAIN.model_copy(update={"batch_size": 8})
    _, log = tight(tmp_path / "roomy", 8, config)
    _, halved = tight(tmp_path / "narrow", 2, config)
    assert (log.halvings, halved.halvings) == (0, 2) and "4 parts" in halved.notes[0]
    assert "memory does not hold 8 images at once: each batch goes in 2 parts now" in capsys.readouterr().err
    assert [e.train_loss for e in halved.epochs] == pytest.approx([e.train_loss for e in log.epochs], rel=1e-3)


def test_a_halved_batch_is_resumed(tmp_path, capsys):
    config = PLAIN.model_copy(update={"batch_size": 8})
    whole, _ = tight(tmp_path / "whole", 2, config)
    with pytest.raises(Stopped):
        tight(tmp_path / "cut", 2, config, writes=3)
    assert Checkpoints(LocalFiles(tmp_path / "cut" / "c"), "a" * 64).newest().position.halvings == 2
    capsys.readouterr()
    again, log = tight(tmp_path / "cut", 2, config)
    assert "does not hold" not in capsys.readouterr().err
    assert log.halvings == 2 and difference(whole, again) == 0.0


class Spilling(Tight):
    """The same, but what does not fit is noticed when it has gone through, as in a network whose last layer is big."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        made = self.inner(pixels)
        if self.training and len(pixels) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made


def test_a_pass_that_memory_did_not_hold_leaves_no_trace_in_batch_norm(tmp_path):
    config = PLAIN.model_copy(update={"batch_size": 8, "stages": (Stage(epochs=1, lr=1e-3),)})
    trained = []
    for name, images, halvings in (("known", 8, 1), ("met", 4, 0)):
        source = data(tmp_path / name)
        network = models.build(MODEL, source.heads, source.preprocess)
        network.backbone = Spilling(network.backbone, images)
        store = Checkpoints(LocalFiles(tmp_path / name / "c"), "a" * 64)
        _, log = train_here(network, source, config, Silent(), store, halvings)
        assert log.halvings == 1
        trained.append(network)
    assert difference(*trained) == 0.0


def test_one_image_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="does not hold a batch of one image"):
        tight(tmp_path, 0, PLAIN)


# -- what cannot be ------------------------------------------------------------------------------


def test_an_infinite_validation_loss_names_the_images(tmp_path):
    config = PLAIN.model_copy(update={"stages": (Stage(epochs=1, lr=1e30, warmup=0.0),), "clip": 0.0, "batch_size": 16})
    with pytest.raises(TrainingError, match=r"validation, on images image_0016, .*train\.seed=0"):
        learn(tmp_path, config)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"devices": 64}, "this machine has"), ({"devices": 2, "batch_size": 1}, "cannot be shared")],
)
def test_devices_that_cannot_be_are_refused(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        learn(tmp_path, PLAIN.model_copy(update=change))

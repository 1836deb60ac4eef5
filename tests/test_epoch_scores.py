"""What is known of every epoch beside the loss: scores of validation rows, and accuracy while it learns."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from test_options import PLAIN, VIT, learn
from test_train import Recorded, Stopped, StopsAt, data, run

from medflow import metrics, report
from medflow.checkpoint import Checkpoints
from medflow.config.sections import Augment, Mixing, MonaiUNet, Stage, TrainConfig
from medflow.fit import fit
from medflow.fit.tally import Tally
from medflow.loader import Batch
from medflow.models import build
from medflow.records import EpochLog
from medflow.tracking import LocalFiles, Silent

UNET = MonaiUNet(size=tiny.SIZE, channels=(4, 8), features=4, label_hidden=(4,), label_dropout=(0.0, 0.0))
ALL = (tiny.LABELS, tiny.FINDINGS, tiny.REGION)
#: So small a step that the network before an epoch is the network after it.
STILL = PLAIN.model_copy(update={"stages": (Stage(epochs=1, lr=1e-12),)})


def said_of(network, examples) -> dict[str, np.ndarray]:
    with torch.no_grad():
        logits = network(examples.batch(np.arange(len(examples))).images)
    return {name: value.numpy() for name, value in logits.items()}


def test_every_head_is_scored_on_validation_rows(tmp_path):
    network, log = learn(tmp_path, PLAIN.model_copy(update={"stages": (Stage(epochs=1, lr=1e-2),)}), UNET, ALL)
    source = data(tmp_path / "again", ALL)
    val, scores = source.examples(source.val), log.epochs[0].scores
    logits = said_of(network, val)
    truth = val.targets["diagnosis"].argmax(1)
    decided = logits["diagnosis"].argmax(1)
    assert scores["diagnosis/accuracy"] == pytest.approx(accuracy_score(truth, decided))
    assert scores["diagnosis/f1"] == pytest.approx(f1_score(truth, decided, average="macro"))
    areas = [roc_auc_score(val.targets["findings"][:, k], logits["findings"][:, k]) for k in range(2)]
    assert scores["findings/auroc"] == pytest.approx(np.mean(areas))
    masks = val.batch(np.arange(len(val))).targets["region"].numpy()
    dice, iou = metrics.overlap(logits["region"][:, 0] >= 0, masks).mean(axis=0)
    assert (scores["region/dice"], scores["region/iou"]) == (pytest.approx(dice), pytest.approx(iou))
    kept = {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc"}
    assert {name.split("/")[1] for name in scores if name.startswith("diagnosis/")} == kept
    assert log.epochs[0].val_score == scores["diagnosis/auroc"]


@pytest.mark.parametrize("heads", [(tiny.LABELS, tiny.FINDINGS), (tiny.FINDINGS, tiny.LABELS)])
def test_accuracy_while_it_learns_is_that_of_known_training_rows(tmp_path, heads):
    network, log = learn(tmp_path, STILL.model_copy(update={"accumulate": 2}), VIT, heads)
    source = data(tmp_path / "again", heads)
    train = source.examples(source.train)
    logits, targets = said_of(network, train)[heads[0].name], train.targets[heads[0].name]
    known = ~np.isnan(targets).any(axis=1)
    assert 0 < known.sum() < len(known)
    if heads[0] is tiny.LABELS:
        right = (logits.argmax(1) == np.nan_to_num(targets).argmax(1))[known]
    else:
        right = ((logits >= 0) == (targets > 0.5))[known]
    assert log.epochs[0].train_accuracy == pytest.approx(right.mean())
    assert set(log.epochs[0].train_losses) == {"diagnosis", "findings"}


def test_training_loss_by_head_is_over_known_terms(tmp_path):
    network, log = learn(tmp_path, STILL.model_copy(update={"class_weights": False}), VIT)
    source = data(tmp_path / "again")
    train = source.examples(source.train)
    targets = train.targets["diagnosis"]
    known = ~np.isnan(targets).any(axis=1)
    said, truth = torch.from_numpy(said_of(network, train)["diagnosis"][known]), targets[known].argmax(1)
    mean = torch.nn.functional.cross_entropy(said, torch.from_numpy(truth))
    assert log.epochs[0].train_losses == {"diagnosis": pytest.approx(float(mean), rel=1e-5)}


def test_mixed_images_are_not_counted_as_right_or_wrong(tmp_path):
    for mixing in (Mixing(mixup=0.4), Mixing(cutmix=1.0)):
        _, log = learn(tmp_path / str(mixing.mixup), STILL.model_copy(update={"mixing": mixing}))
        assert log.epochs[0].train_accuracy is None and log.epochs[0].train_losses["diagnosis"] > 0


def test_a_label_never_known_does_not_count():
    tally = Tally((tiny.FINDINGS,), mixed=False)
    batch = Batch(
        images=torch.zeros(2, 1, 1, 1),
        targets={"findings": torch.tensor([[1.0, math.nan], [0.0, math.nan]])},
        known={"findings": torch.tensor([[True, False], [True, False]])},
        image_ids=("a", "b"),
    )
    seen = tally.seen({"findings": torch.tensor(3.0)}, {"findings": torch.ones(2, 2)}, batch).tolist()
    total = tally.added(tally.added((), seen), seen)
    assert tally.losses(total) == {"findings": 1.5}
    assert tally.accuracy(total) == 0.5
    assert tally.losses((0.0,) * tally.size) == {} and tally.accuracy((0.0,) * tally.size) is None


def test_taken_up_in_the_middle_of_an_epoch_its_numbers_are_the_same(tmp_path):
    config = TrainConfig(batch_size=4, stages=(Stage(epochs=2, lr=1e-3),), augment=Augment(), checkpoint_seconds=0.0)

    def entries(files) -> list[dict]:
        source = data(tmp_path / "data", ALL)
        network = build(UNET, ALL, source.preprocess)
        log = fit(network, source, config, tracker=Silent(), checkpoints=Checkpoints(files, "a" * 64))
        return [e.model_dump(exclude={"seconds", "images_per_second"}) for e in log.epochs]

    whole = entries(LocalFiles(tmp_path / "whole"))
    with pytest.raises(Stopped):
        entries(StopsAt(tmp_path / "stopped", 7))
    at = Checkpoints(LocalFiles(tmp_path / "stopped"), "a" * 64).newest().position
    assert (at.epoch, at.step) == (1, 2) and 0 < at.tally[len(ALL)] <= 8, "known classes of this epoch's 8 images"
    assert entries(LocalFiles(tmp_path / "stopped")) == whole


class Told(Recorded):
    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, object] = {}

    def params(self, values):
        self.settings |= values


def test_trackers_and_console_are_told(tmp_path, capsys):
    stages = (Stage(epochs=1, lr=1e-3, freeze="backbone"), Stage(epochs=1, lr=1e-3))
    told = Told()
    bundle = run(tmp_path, PLAIN.model_copy(update={"stages": stages}), heads=ALL, model=UNET, tracker=told)
    entry = bundle.card.training.epochs[1]
    for name, value in {
        "val/diagnosis/accuracy": entry.scores["diagnosis/accuracy"],
        "stage_2/val/region/dice": entry.scores["region/dice"],
        "train/loss/region": entry.train_losses["region"],
        "stage_2/train/accuracy": entry.train_accuracy,
    }.items():
        assert told.steps[2][name] == value
    said = capsys.readouterr().err
    assert f"accuracy training {entry.train_accuracy:.3f}, validation {entry.scores['diagnosis/accuracy']:.3f};" in said
    first, second = (told.settings[f"stage_{stage}.trainable_parameters"] for stage in (1, 2))
    assert 0 < first < second == bundle.card.parameters
    assert f"stage 1 of 2: {first:,} of {second:,} parameters learn" in said
    drawn = report.training_curves(bundle.card.training)
    header = drawn.csv.splitlines()[0].split(",")
    assert {"train_accuracy", "train_loss_region", "val_diagnosis_accuracy", "val_region_dice"} <= set(header)
    assert f"{entry.scores['region/dice']:.4f}"[:5] in drawn.csv.splitlines()[2]


def test_an_entry_from_before_loads_and_is_drawn_as_it_was():
    old = {"stage": 0, "epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_score": 0.5, "lr": 0.1, "losses": {"d": 1}}
    entry = EpochLog.model_validate_json(json.dumps(old))
    assert (entry.scores, entry.train_losses, entry.train_accuracy) == ({}, {}, None)

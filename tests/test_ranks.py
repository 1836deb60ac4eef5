"""Several processes: what each is asked, how each may end, and that together they train as one does."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import rank_work
import tiny
import torch
from test_options import PLAIN, VIT, learn
from test_train import MODEL, digest, run

from medflow import models, ranks
from medflow.config.sections import Augment, Mixing, Stage, TrainConfig
from medflow.errors import ConfigError, ProcessLost
from medflow.tracking import LocalFiles


class Numbers:
    def add(self, number: int, *, by: int) -> int:
        return number + by


def together(work, *arguments):
    start = time.monotonic()
    try:
        return ranks.run(work, arguments, 2, {"numbers": Numbers()})
    finally:
        assert time.monotonic() - start < 50
        assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_the_first_rank_answers_and_each_may_ask_the_parent():
    assert together(rank_work.ask, 41) == 42


def test_an_error_of_a_rank_is_raised_as_it_is():
    with pytest.raises(ConfigError, match="this cannot be") as error:
        together(rank_work.refuse)
    assert error.value.hint == "do something else"


def test_memory_that_runs_out_in_one_rank_is_told():
    with pytest.raises(ranks.OutOfMemory):
        together(rank_work.fill_memory)


@pytest.mark.parametrize(("how", "words"), [("killed", "was killed by SIGKILL"), ("raises", "ended with status 1")])
def test_a_dead_rank_ends_all_and_its_last_lines_are_told(how, words):
    with pytest.raises(ProcessLost, match=rf"(?s)process 2 of 2 {words}.*the last words") as error:
        together(rank_work.die, how)
    assert ("a rank fell over" in error.value.message) == (how == "raises")
    assert "newest checkpoint" in error.value.hint


@pytest.mark.parametrize("model", [MODEL, VIT], ids=lambda model: model.name)
def test_a_network_arrives_as_it_was_sent(model):
    network = models.build(model, (tiny.LABELS,), tiny.preprocess())
    structure, data = ranks.pack(network)
    assert all(tensor.is_meta for tensor in structure.state_dict().values())
    again = ranks.unpack((structure, data))
    images = torch.randint(0, 256, (3, tiny.SIZE, tiny.SIZE, 1), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again.eval()(images)["diagnosis"], network.eval()(images)["diagnosis"])
    assert not next(network.parameters()).is_meta


# -- training ------------------------------------------------------------------------------------

#: 20 optimiser steps and more, an odd last batch, three stages, augmentation, unknown labels in both heads.
#: Not clipped, and SGD first: neither Adam nor clipping would see a gradient of another length.
SHARED = TrainConfig(
    batch_size=6,
    clip=0.0,
    stages=(Stage(epochs=2, lr=1e-2, optimizer="sgd"), Stage(epochs=1, freeze="backbone"), Stage(epochs=2, lr=1e-3)),
    augment=Augment(rotate=0.5),
    checkpoint_seconds=0.0,
)


def losses(log) -> list[float]:
    return [
        value
        for entry in log.epochs
        for value in (entry.train_loss, entry.val_loss, *entry.losses.values(), *entry.train_losses.values())
    ]


def test_two_processes_follow_one(tmp_path):
    heads = (tiny.LABELS, tiny.FINDINGS)
    one, alone = learn(tmp_path / "one", SHARED, VIT, heads, rows=37)
    two, shared = learn(tmp_path / "two", SHARED.model_copy(update={"devices": 2}), VIT, heads, rows=37)
    assert shared.devices == 2 and len(alone.epochs) == 5
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)
    assert [entry.val_score for entry in shared.epochs] == [entry.val_score for entry in alone.epochs]
    assert [entry.scores for entry in shared.epochs] == [entry.scores for entry in alone.epochs]
    assert [entry.train_accuracy for entry in shared.epochs] == [entry.train_accuracy for entry in alone.epochs]
    differences = torch.cat(
        [(a - b).detach().abs().flatten() for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    )
    assert float(differences.mean()) < 1e-5


@pytest.mark.slow
def test_every_option_works_on_two_processes_and_the_same_twice(tmp_path):
    config = SHARED.model_copy(
        update={
            "devices": 2, "batch_size": 8, "accumulate": 2, "sampler": "balanced", "ema_decay": 0.9,
            "mixing": Mixing(mixup=0.4, cutmix=1.0), "gradient_checkpointing": True,
            "stages": (Stage(epochs=1, freeze="backbone", unfreeze_blocks=1), Stage(epochs=1, schedule="plateau")),
        }
    )  # fmt: skip
    first, second = (run(tmp_path / name, config) for name in ("first", "second"))
    assert digest(first) == digest(second)
    assert "batch norm saw each of 2 processes' share" in first.card.notes[-1]


@pytest.mark.slow
def test_features_of_a_frozen_backbone_are_shared_out(tmp_path):
    config = PLAIN.model_copy(update={"stages": (Stage(epochs=3, lr=1e-2, freeze="backbone"),)})
    _, alone = learn(tmp_path / "one", config, VIT, rows=37)
    _, shared = learn(tmp_path / "two", config.model_copy(update={"devices": 2}), VIT, rows=37)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_a_rank_killed_in_training_ends_the_run_and_a_resumed_one_ends_alike(tmp_path):
    config = SHARED.model_copy(update={"devices": 2})
    whole = digest(run(tmp_path / "whole", config))
    folder = tmp_path / "killed"
    killer = threading.Thread(target=_kill_a_rank_at, args=(folder / "checkpoints", "001-00000"), daemon=True)
    killer.start()
    with pytest.raises(ProcessLost, match=r"process 2 of 2 was killed by SIGKILL"):
        run(folder, config)
    killer.join()
    assert LocalFiles(folder / "checkpoints").names()
    assert digest(run(folder, config)) == whole


def _kill_a_rank_at(folder: Path, position: str) -> None:
    """Kill the second rank when a checkpoint of ``position`` or later is there."""
    while not any(name.split("-", 1)[1] >= position for name in LocalFiles(folder).names()):
        time.sleep(0.005)
    children = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    os.kill(max(children, key=lambda child: child.create_time()).pid, signal.SIGKILL)

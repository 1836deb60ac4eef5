from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from medflow import models
from medflow.checkpoint import Checkpoints, decode
from medflow.config.sections import (
    Augment,
    Calibrate,
    EvaluateConfig,
    ExportConfig,
    MonaiUNet,
    QuantizeConfig,
    Stage,
    TimmModel,
    TrainConfig,
)
from medflow.device import loading_threads
from medflow.errors import ConfigError, TrainingError
from medflow.evaluate import evaluate
from medflow.export import export_onnx
from medflow.fit import Data, fit
from medflow.quantize import quantize
from medflow.records import Bundle, Finding
from medflow.schedule import lr_at
from medflow.scoring import open_scorer
from medflow.tracking import LocalFiles, Silent
from medflow.train import train

MODEL = TimmModel(name="test_resnet", size=tiny.SIZE, pretrained="none", stats="dataset", dropout=0.2)
QUICK = TrainConfig(batch_size=4, stages=(Stage(epochs=2, lr=1e-3),), checkpoint_seconds=0.0)
#: Everything that must survive a kill: two stages, a frozen backbone, augmentation, dropout, accumulation.
KILLED = TrainConfig(
    batch_size=4,
    accumulate=2,
    stages=(Stage(epochs=2, lr=1e-3, freeze="backbone"), Stage(epochs=6, lr=1e-3, patience=0)),
    augment=Augment(rotate=0.7, noise=0.5),
    checkpoint_seconds=0.0,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Bit-identity is promised for the same number of threads; the killed process has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorded(Silent):
    """A tracker that keeps the metrics in memory."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def metrics(self, values, step):
        self.steps[step] = dict(values)


def run(folder: Path, config: TrainConfig, *, heads=(tiny.LABELS,), model=MODEL, rows=36, tracker=None) -> Bundle:
    """Train on the tiny rows; checkpoints and bundle lie below ``folder``."""
    parts = tiny.make(folder / "pixels", rows=rows)
    files = LocalFiles(folder / "checkpoints")
    return train(*parts, heads, model, config, work=folder / "work", tracker=tracker or Silent(), checkpoints=files)


def digest(bundle: Bundle) -> str:
    return hashlib.sha256(bundle.weights.read_bytes()).hexdigest()


def data(folder: Path, heads=(tiny.LABELS,), rows: int = 24) -> Data:
    rows_, val, pixels, normalization = tiny.make(folder / "pixels", rows=rows)
    return Data(rows_, val, pixels, heads, models.preprocess_for(MODEL, normalization, pixels))


# -- what comes out ------------------------------------------------------------------------------


def test_the_bundle_is_complete_and_says_what_the_network_says(tmp_path):
    tracker = Recorded()
    bundle = run(tmp_path, QUICK, tracker=tracker)
    again = Bundle.open(tmp_path / "work" / MODEL.key)
    card = again.card
    assert card == bundle.card and card.weights_digest == digest(again) and card.bytes == again.weights.stat().st_size
    assert {item.head for item in card.thresholds} == {item.head for item in card.temperatures} == {"diagnosis"}
    assert card.latency_ms > 0 and card.parameters > 0 and card.weights_from == "none"
    assert [entry.epoch for entry in card.training.epochs] == [1, 2] == sorted(tracker.steps)
    assert tracker.steps[2]["val/auroc"] == card.training.epochs[1].val_score
    golden = load_file(again.golden)
    assert len(golden["image"]) == 8
    assert np.array_equal(open_scorer(again)(golden["image"])["diagnosis"], golden["diagnosis"])
    assert not LocalFiles(tmp_path / "checkpoints").names()


def test_thresholds_reach_the_sensitivity_that_is_asked_for_in_each_variant(tmp_path):
    asked = QUICK.model_copy(update={"calibrate": Calibrate(rule="sensitivity", at=0.8), "stages": (Stage(epochs=1),)})
    rows, _, pixels, normalization = tiny.make(tmp_path / "pixels", rows=72)
    where = {"work": tmp_path / "work", "tracker": Silent(), "checkpoints": LocalFiles(tmp_path / "checkpoints")}
    made = train(rows, rows, pixels, normalization, (tiny.FINDINGS,), MODEL, asked, **where)
    graph = export_onnx(made, rows, pixels, ExportConfig(), work=tmp_path / "onnx")
    small = quantize(graph, rows, rows, pixels, QuantizeConfig(calibration_images=8), work=tmp_path / "int8")
    for bundle in (made, graph, small):
        assert {cut.rule for cut in bundle.card.thresholds} == {"sensitivity 0.8"}
        measured = evaluate(bundle, rows, pixels, EvaluateConfig(resamples=100), "val").evaluation
        assert all(measured.score("recall", label=label).value >= 0.8 for label in tiny.FINDINGS.labels)
        for counts in measured.counts["findings"]:
            hits, positives = counts.true_positives, counts.true_positives + counts.false_negatives
            assert hits / positives == pytest.approx(measured.score("recall", label=counts.label).value)


def test_a_warning_of_the_split_is_a_note_of_the_card(tmp_path):
    rows, val, pixels, normalization = tiny.make(tmp_path / "pixels", rows=24)
    told = Finding(check="group_unknown", severity="warning", message="images whose lesion is unknown", count=9)
    heard = Finding(check="split_official", severity="info", message="moved", count=2)
    rows = replace(rows, findings=(told, heard))
    files = LocalFiles(tmp_path / "checkpoints")
    options = {"work": tmp_path / "work", "tracker": Silent(), "checkpoints": files}
    bundle = train(rows, val, pixels, normalization, (tiny.LABELS,), MODEL, QUICK, **options)
    assert bundle.card.notes == ("9 images whose lesion is unknown",)


def test_a_mask_and_labels_are_learnt_together(tmp_path):
    model = MonaiUNet(size=tiny.SIZE, channels=(8, 16, 32), features=8, label_hidden=(8,), label_dropout=(0.0, 0.0))
    config = TrainConfig(batch_size=8, stages=(Stage(epochs=12, lr=5e-3),), loss_weights={"diagnosis": 2.0})
    bundle = run(tmp_path, config, heads=(tiny.LABELS, tiny.REGION), model=model, rows=60)
    first, last = bundle.card.training.epochs[0], bundle.card.training.epochs[-1]
    assert last.losses["region"] < 0.6 * first.losses["region"]
    assert last.val_loss == pytest.approx(2 * last.losses["diagnosis"] + last.losses["region"])
    assert bundle.card.training.best_score > 0.9


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    # The last epochs diverge on purpose: a rate that is far too large after two that are not.
    stages = (Stage(epochs=4, lr=2e-3, schedule="constant"), Stage(epochs=1, lr=3.0, schedule="constant", warmup=0.0))
    source = data(tmp_path, rows=60)
    network = models.build(MODEL, source.heads, source.preprocess)
    config = TrainConfig(batch_size=8, stages=stages)
    log = fit(network, source, config, tracker=Silent(), checkpoints=Checkpoints(LocalFiles(tmp_path / "c"), "a" * 64))
    assert log.best_epoch <= 4 and log.best_score == max(entry.val_score for entry in log.epochs)
    val = source.examples(source.val)
    with torch.no_grad():
        logits = network(val.batch(np.arange(len(val))).images)["diagnosis"]
    truth = torch.from_numpy(val.targets["diagnosis"])
    loss = torch.nn.functional.cross_entropy(
        logits, truth.argmax(1), weight=torch.tensor(log.class_weights["diagnosis"])
    )
    kept = log.epochs[log.best_epoch - 1]
    weights = torch.tensor(log.class_weights["diagnosis"])[truth.argmax(1)]
    assert float(loss * weights.sum() / len(val)) == pytest.approx(kept.val_loss, rel=1e-4)


# -- the same again ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bundle_and_another_does_not(tmp_path):
    config = KILLED.model_copy(update={"stages": (Stage(epochs=2, lr=1e-3),), "checkpoint_seconds": 60.0})
    first = run(tmp_path / "first", config)
    torch.rand(7)  # the global generator is elsewhere the second time
    second = run(tmp_path / "second", config.model_copy(update={"workers": 2}))
    third = run(tmp_path / "third", config.model_copy(update={"seed": 1}))
    assert digest(first) == digest(second) != digest(third)


def test_how_many_threads_load_is_no_part_of_what_is_learnt(tmp_path):
    config = QUICK.model_copy(update={"sampler": "balanced", "augment": Augment(rotate=0.7, noise=0.5)})
    bundles = [run(tmp_path / str(n), config.model_copy(update={"workers": n})) for n in (0, 2, None)]
    assert len({digest(bundle) for bundle in bundles}) == len({bundle.digest() for bundle in bundles}) == 1
    parts = tiny.make(tmp_path / "pixels", rows=36)
    for workers in (2, 0):
        folder = tmp_path / f"resumed {workers}"
        begun = config.model_copy(update={"workers": workers})
        files = StopsAt(folder / "checkpoints", 3)
        with pytest.raises(Stopped):
            train(*parts, (tiny.LABELS,), MODEL, begun, work=folder / "work", tracker=Silent(), checkpoints=files)
        tracker = Recorded()
        ended = run(folder, begun.model_copy(update={"workers": 2 - workers}), tracker=tracker)
        assert digest(ended) == digest(bundles[0])


@pytest.mark.parametrize(
    ("machine", "threads"),
    [(("cpu", 64, 1), 0), (("cuda", 1, 1), 1), (("cuda", 6, 1), 5), (("cuda", 64, 1), 8), (("cuda", 8, 4), 1)],
)
def test_threads_load_beside_a_gpu_and_not_beside_a_cpu(machine, threads):
    assert loading_threads(*machine) == threads


def test_settings_and_generators_of_the_caller_come_back(tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    run(tmp_path, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_train
test_train.run(Path(sys.argv[1]), test_train.KILLED)
"""


def kill_at(folder: Path, position: str, delay: float) -> None:
    """Train in a process of its own, and kill it ``delay`` seconds after a checkpoint at ``position`` or later."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(here), str(here.parent))), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=environment, stderr=subprocess.PIPE)
    try:
        files, give_up = LocalFiles(folder / "checkpoints"), time.monotonic() + 120
        while not any(name.split("-", 1)[1] >= position for name in files.names()):
            assert child.poll() is None, child.stderr.read().decode()
            assert time.monotonic() < give_up
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return digest(run(tmp_path_factory.mktemp("whole"), KILLED))


def check_resumes(folder: Path, uninterrupted: str, position: str, delay: float, capsys) -> None:
    kill_at(folder, position, delay)
    assert LocalFiles(folder / "checkpoints").names()
    assert digest(run(folder, KILLED)) == uninterrupted
    assert "training goes on in stage" in capsys.readouterr().err


def test_killed_in_the_middle_of_an_epoch_it_ends_with_the_same_weights(tmp_path, uninterrupted, capsys):
    check_resumes(tmp_path, uninterrupted, "001-00001-0000002", 0.004, capsys)


def test_it_goes_on_with_the_number_of_threads_with_which_it_began(tmp_path, uninterrupted, capsys):
    kill_at(tmp_path, "000-00001-0000001", 0.0)
    torch.set_num_threads(2)
    resumed = run(tmp_path, KILLED)
    assert "threads: 1, with which the training began (this machine would take 2)" in capsys.readouterr().err
    assert (digest(resumed), resumed.card.training.threads) == (uninterrupted, 1)
    assert torch.get_num_threads() == 2


def test_a_checkpoint_of_a_gpu_leaves_a_cpu_its_own_number_of_threads(tmp_path):
    kill_at(tmp_path, "000-00001-0000001", 0.0)
    [*_, newest] = sorted((tmp_path / "checkpoints").iterdir())
    found = decode(newest.read_bytes())
    store = Checkpoints(LocalFiles(tmp_path / "checkpoints"), newest.name.partition("-")[0])
    store.clear()
    store.save(replace(found, position=found.position.model_copy(update={"threads": 0})))
    assert run(tmp_path, KILLED).card.training.threads == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path, uninterrupted, capsys, seed):
    dice = random.Random(seed)
    position = f"{dice.randint(0, 1):03d}-{dice.randint(0, 2):05d}-{dice.randint(0, 3):07d}"
    check_resumes(tmp_path, uninterrupted, position, dice.uniform(0.0, 0.05), capsys)


class Stopped(Exception):
    pass


class StopsAt(LocalFiles):
    """Files that end the training, as a kill would, when a given number of checkpoints has been written."""

    def __init__(self, folder: Path, writes: int) -> None:
        super().__init__(folder)
        self.left = writes

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        self.left -= 1
        if self.left == 0:
            raise Stopped


@pytest.mark.parametrize("writes", [1, 3, 4, 7, 11, 24])
def test_taken_up_after_any_checkpoint_it_ends_with_the_same_weights(tmp_path, uninterrupted, writes):
    parts = tiny.make(tmp_path / "pixels", rows=36)
    files = StopsAt(tmp_path / "checkpoints", writes)
    with pytest.raises(Stopped):
        train(*parts, (tiny.LABELS,), MODEL, KILLED, work=tmp_path / "work", tracker=Silent(), checkpoints=files)
    tracker = Recorded()
    bundle = run(tmp_path, KILLED, tracker=tracker)
    assert digest(bundle) == uninterrupted
    assert sorted(tracker.steps) == list(range(1, 9))  # epochs from before are told again, to a tracker that is new


def test_a_checkpoint_of_other_settings_is_not_taken_up(tmp_path, capsys):
    parts = tiny.make(tmp_path / "pixels", rows=36)
    with pytest.raises(Stopped):
        files = StopsAt(tmp_path / "checkpoints", 3)
        train(*parts, (tiny.LABELS,), MODEL, KILLED, work=tmp_path / "work", tracker=Silent(), checkpoints=files)
    run(tmp_path, QUICK)
    assert "goes on" not in capsys.readouterr().err


# -- the loop's rules ----------------------------------------------------------------------------


def test_a_diverging_loss_stops_and_names_step_and_images(tmp_path):
    config = TrainConfig(batch_size=4, stages=(Stage(epochs=3, lr=1e30, warmup=0.0),), clip=0.0)
    with pytest.raises(TrainingError, match=r"epoch \d of 3, (step \d+, on images image_\d{4}|validation)") as error:
        run(tmp_path, config)
    assert "train.lr" in error.value.hint


def test_no_better_score_ends_a_stage_early(tmp_path):
    config = TrainConfig(batch_size=8, stages=(Stage(epochs=50, lr=1e-12, patience=2),))
    epochs = run(tmp_path, config, model=MODEL.model_copy(update={"dropout": 0.0})).card.training.epochs
    assert 3 <= len(epochs) < 50


def test_one_metric_may_keep_the_weights_and_another_stop(tmp_path):
    stages = (Stage(epochs=6, lr=1e-3, patience=2, schedule="constant"),)
    config = TrainConfig(batch_size=8, monitor="accuracy", stages=stages, checkpoint_seconds=0.0)
    by_loss = config.model_copy(update={"stop_on": "loss"})
    bundle, bundle_by_loss = run(tmp_path / "accuracy", config), run(tmp_path / "loss", by_loss)
    both, other = bundle.card.training, bundle_by_loss.card.training
    same = run(tmp_path / "same", config.model_copy(update={"stop_on": "accuracy"})).card.training
    assert both.digest() == same.digest() and (both.stop_on, other.stop_on) == (None, "loss")
    for log, values in (
        (both, [entry.val_score for entry in both.epochs]),
        (other, [-entry.val_loss for entry in other.epochs]),
    ):
        assert log.best_epoch == max(log.epochs, key=lambda entry: entry.val_score).epoch
        assert len(values) == ended(values, 2, 6)
    assert len(both.epochs) == 3 and len(other.epochs) == 6
    files = StopsAt(tmp_path / "cut" / "checkpoints", 9)
    with pytest.raises(Stopped):
        train(*tiny.make(tmp_path / "cut" / "pixels", rows=36), (tiny.LABELS,), MODEL, by_loss,
              work=tmp_path / "cut" / "work", tracker=Silent(), checkpoints=files)  # fmt: skip
    assert run(tmp_path / "cut", by_loss).digest() == bundle_by_loss.digest()


def ended(values: list[float], patience: int, epochs: int) -> int:
    """After how many epochs a stage ends."""
    waits = [place - int(np.argmax(values[: place + 1])) for place in range(len(values))]
    return next((place + 1 for place, waited in enumerate(waits) if waited >= patience), epochs)


def test_a_frozen_backbone_is_left_as_it_is_to_its_statistics(tmp_path):
    source = data(tmp_path)
    network = models.build(MODEL, source.heads, source.preprocess)
    before = models.tensors_of(network)
    config = TrainConfig(batch_size=4, stages=(Stage(epochs=2, lr=1e-2, freeze="backbone"),))
    fit(network, source, config, tracker=Silent(), checkpoints=Checkpoints(LocalFiles(tmp_path / "c"), "a" * 64))
    after = models.tensors_of(network)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("heads.") for name in changed)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("heads", [(tiny.LABELS,), (tiny.FINDINGS,)], ids=lambda heads: heads[0].kind)
def test_two_batches_of_four_accumulated_are_one_of_eight(tmp_path, heads):
    model = TimmModel(name="test_vit", size=tiny.SIZE, pretrained="none", stats="unit", dropout=0.0)
    source, weights = data(tmp_path, heads), []
    for size, accumulate in ((8, 1), (4, 2)):
        network = models.build(model, source.heads, source.preprocess)
        stages = (Stage(epochs=1, lr=1e-3, warmup=0.0),)
        config = TrainConfig(batch_size=size, accumulate=accumulate, stages=stages, augment=Augment(rotate=0.0))
        store = Checkpoints(LocalFiles(tmp_path / "c"), "a" * 64)
        log = fit(network, source, config, tracker=Silent(), checkpoints=store)
        weights.append((models.tensors_of(network), log.epochs[0].train_loss))
    (first, loss), (second, same_loss) = weights
    assert loss == pytest.approx(same_loss, rel=1e-5)
    # One Adam step moves a weight by up to lr = 1e-3 whatever its gradient, so rounding can show where that is near 0.
    differences = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert float(differences.mean()) < 1e-6 and float((differences > 1e-4).float().mean()) < 1e-2


def test_learning_rate_is_a_function_of_the_step():
    stage = Stage(epochs=1, lr=1.0, warmup=0.2, lr_min=0.1)
    rates = [lr_at(stage, step, 50) for step in range(50)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.11
    flat = stage.model_copy(update={"schedule": "constant", "warmup": 0.0})
    assert {lr_at(flat, step, 50) for step in range(50)} == {1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"monitor": "dicee"}, "train.monitor is 'dicee', which no head has"),
        ({"stop_on": "dicee"}, "train.stop_on is 'dicee', which no head has"),
        ({"loss_weights": {"lesion": 1.0}}, "lesion"),
        ({"batch_size": None}, "batch_size"),
    ]
    + ([] if torch.cuda.is_available() else [({"accelerator": "cuda"}, "no GPU")]),
)
def test_what_cannot_be_meant_is_refused(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, QUICK.model_copy(update=change))


def test_a_batch_of_one_under_batch_norm_is_explained(tmp_path):
    model = MonaiUNet(size=tiny.SIZE, channels=(4, 8), features=4, label_hidden=(8,), label_dropout=(0.0, 0.0))
    with pytest.raises(TrainingError, match="batch norm"):
        run(tmp_path, QUICK.model_copy(update={"batch_size": 1}), model=model)


@pytest.mark.parametrize("monitor", ["auto", "balanced_accuracy", "brier", "loss", "kappa"])
def test_any_metric_of_the_head_can_be_watched(tmp_path, monitor):
    log = run(tmp_path, QUICK.model_copy(update={"monitor": monitor, "stages": (Stage(epochs=1),)})).card.training
    assert log.monitor == ("auroc" if monitor == "auto" else monitor)
    if monitor in ("brier", "loss"):
        assert log.best_score < 0

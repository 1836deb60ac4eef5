"""Trackers: what they keep, and that none of them can end a run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from mlflow import MlflowClient

from medflow import sampling, train_files
from medflow.config.reading import load
from medflow.config.sections import Augment, Stage, TrainConfig, WandbConfig
from medflow.home import home
from medflow.loader import Pass
from medflow.platform.trackers import MlflowRun
from medflow.records import Bundle
from medflow.report import images
from medflow.trackers import Offer, opened, tensorboard, wandb
from medflow.tracking import LocalFiles, Silent, Tracker
from medflow.train import train

MODEL = (
    load("phantom")
    .models[0]
    .model_copy(update={"size": tiny.SIZE, "channels": (8, 16), "label_hidden": (8,), "label_dropout": (0.1, 0.1)})
)
QUICK = TrainConfig(batch_size=8, stages=(Stage(epochs=2, lr=1e-3, patience=0),), augment=Augment(rotate=1.0))


class Broken:
    """A sink whose every call raises, as a server that went away; its message holds what must not be told."""

    def params(self, values):
        raise OSError("https://user:secret@tracker.example")

    def metrics(self, values, step):
        raise OSError("https://user:secret@tracker.example")

    def file(self, path, folder):
        raise OSError("https://user:secret@tracker.example")

    def model(self, files, name):
        raise OSError("https://user:secret@tracker.example")

    def finish(self, ending):
        raise OSError("https://user:secret@tracker.example")


def trained(folder: Path, tracker: Tracker) -> Bundle:
    parts = tiny.make(folder / "pixels", rows=24)
    files = LocalFiles(folder / "checkpoints")
    bundle = train(*parts, (tiny.LABELS, tiny.REGION), MODEL, QUICK, work=folder / "work", tracker=tracker,
                   checkpoints=files)  # fmt: skip
    train_files.log_files(bundle, parts[0], parts[2], tracker, folder / "work")
    return bundle


def refused() -> Broken:
    raise ConnectionRefusedError("https://user:secret@tracker.example")


@pytest.mark.parametrize("open_", [Broken, refused], ids=["went away", "never there"])
def test_a_tracker_that_is_down_gives_one_warning_and_never_a_lost_run(tmp_path, capsys, open_):
    with opened([Offer("That tracker", open_)]) as tracker:
        bundle = trained(tmp_path / "broken", tracker)
    said = capsys.readouterr().err
    assert said.count("warning: That tracker does not answer") == 1
    assert "secret" not in said
    assert bundle.weights.read_bytes() == trained(tmp_path / "silent", Silent()).weights.read_bytes()


def test_tensorboard_keeps_metrics_settings_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened([tensorboard.offer("tiny", tmp_path.name, "train")]) as tracker:
        bundle = trained(tmp_path, tracker)
    kept = EventAccumulator(str(home() / "tensorboard" / "tiny" / tmp_path.name / "train"))
    kept.Reload()
    epochs = bundle.card.training.epochs
    assert [event.value for event in kept.Scalars("train/loss")] == pytest.approx([e.train_loss for e in epochs])
    assert [event.step for event in kept.Scalars("stage_1/val/loss")] == [1, 2]
    assert {"lr", "val/loss"} <= set(kept.Tags()["scalars"])
    assert set(kept.Tags()["images"]) == {"augmentation/augmentation.png", "curves/training_curves.png"}
    words = {name: kept.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
             for name in ("params", "config/config.yaml", "status")}  # fmt: skip
    assert "| train.augment.rotate | 1.0 |" in words["params"]
    assert "rotate: 1.0" in words["config/config.yaml"]
    assert words["status"] == "FINISHED"


def test_wandb_offline_keeps_a_run_without_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = WandbConfig(project="mine", tags=("first",), notes="a note")
    with opened([wandb.offer(config, "tiny", "run-1", "train tiny")]) as tracker:
        tracker.params({"train.lr": 0.5})
        tracker.metrics({"val/loss": 0.25}, 1)
    records = _wandb_records(next((home() / "wandb").rglob("*.wandb")))
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.project, run.run_group, run.display_name) == ("mine", "run-1", "train tiny")
    assert (list(run.tags), run.notes) == (["first"], "a note")
    history = next(record.history for record in records if record.HasField("history"))
    kept = {item.key or "/".join(item.nested_key): item.value_json for item in history.item}
    assert kept["val/loss"] == "0.25"


def test_wandb_offline_keeps_the_model_for_a_later_sync_and_no_image_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with opened([wandb.offer(WandbConfig(), "tiny", tmp_path.name, "train tiny")]) as tracker:
        bundle = trained(tmp_path, tracker)
    kept = [
        record.artifact
        for path in (home() / "wandb").rglob("*.wandb")
        for record in _wandb_records(path)
        if record.HasField("artifact")
    ]
    artifact = next(item for item in kept if item.type == "model")
    assert artifact.name == bundle.card.name.replace("/", "-")
    files = {item.path: Path(item.local_path) for item in artifact.manifest.contents}
    assert set(files) == {"model.safetensors", "card.json"}
    assert all(home() in path.parents for path in files.values())
    assert files["model.safetensors"].read_bytes() == bundle.weights.read_bytes()


def _wandb_records(path: Path):
    """Every record of a finished run; on a busy machine the client's own process writes the last ones late."""
    for _ in range(300):
        records = list(_written(path))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no record of the run's end")


def _written(path: Path):
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def test_wandb_without_a_key_is_said_and_not_asked_for(monkeypatch, capsys):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with opened([wandb.offer(WandbConfig(), "tiny", "run", "train")]) as tracker:
        tracker.metrics({"val/loss": 0.25}, 1)
    assert "WANDB_API_KEY is not set; set it, or set WANDB_MODE=offline" in capsys.readouterr().err


def test_mlflow_that_loses_its_database_in_mid_run_gives_a_warning(tmp_path, capsys):
    database = tmp_path / "mlflow.db"
    mlflow = MlflowClient(f"sqlite:///{database}")
    run = mlflow.create_run(mlflow.create_experiment("e", (tmp_path / "files").as_uri()))
    with opened([Offer("MLflow", lambda: MlflowRun(mlflow, run.info.run_id))]) as tracker:
        tracker.metrics({"val/loss": 0.5}, 1)
        assert mlflow.get_run(run.info.run_id).data.metrics == {"val/loss": 0.5}
        database.write_bytes(b"this is no database any more" * 1000)
        tracker.metrics({"val/loss": 0.4}, 2)
        tracker.metrics({"val/loss": 0.3}, 3)
    assert capsys.readouterr().err.count("warning: MLflow does not answer") == 1


def test_the_picture_of_a_batch_shows_what_training_sees(tmp_path):
    rows, _, pixels, _ = tiny.make(tmp_path / "pixels", rows=24)
    bundle = trained(tmp_path, Silent())
    batch = train_files.augmented_batch(bundle.card, rows, pixels)
    assert batch.before.shape == batch.after.shape and len(batch.image_id) == 8
    assert not np.array_equal(batch.before, batch.after)
    assert not np.array_equal(batch.masks_before, batch.masks_after)
    again = train_files.augmented_batch(bundle.card, rows, pixels)
    first, second = (
        images.augmented(item.image_id, item.before, item.after, item.masks_before, item.masks_after)
        for item in (batch, again)
    )
    assert first.png == second.png
    balanced = dict(bundle.card.training_config) | {"sampler": "balanced"}
    drawn = train_files.augmented_batch(bundle.card.model_copy(update={"training_config": balanced}), rows, pixels)
    order = Pass(0, 0, 0).draw(sampling.balanced({head.name: rows.targets(head) for head in bundle.card.heads[:1]}))
    assert drawn.image_id == tuple(rows.column("image_id")[order[:8]])


def test_where_to_log_is_checked_at_the_door(tmp_path):
    from medflow.errors import ConfigError

    assert load("phantom", ["trackers=[tensorboard,wandb]", "wandb.project=x"]).trackers == ("tensorboard", "wandb")
    with pytest.raises(ConfigError, match=r"trackers.0"):
        load("phantom", ["trackers=[tensorbord]"])

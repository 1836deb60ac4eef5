"""Tuning: the search space at the door, the study in SQLite, and that a killed search goes on as if nothing was."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
import tiny

from medflow.config.reading import load
from medflow.config.search import apply, read_search
from medflow.config.sections import SearchConfig, TuneBudget
from medflow.errors import ConfigError, TrainingError
from medflow.records import TuneResult
from medflow.report import tuning
from medflow.tracking import LocalFiles, Silent
from medflow.tune import Place, Rows, tune

CONFIG = load(
    "phantom",
    ["models=[{kind: timm, name: test_resnet, size: 32, pretrained: none, stats: dataset}]", "train.batch_size=8",
     "train.epochs=2", "train.patience=0"],
)  # fmt: skip
CONFIG = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"loss_weights": {}})})
SPACE = {
    "train.lr": {"kind": "log", "low": 1e-4, "high": 1e-2},
    "train.augment.noise": {"kind": "float", "low": 0.0, "high": 0.5},
    "models.0.hidden": {"kind": "choice", "values": [[], [8]]},
}
SEARCH = SearchConfig.model_validate({"startup": 2, "space": SPACE})


class Killed(BaseException):
    """Ends a search at once, as SIGKILL would: nothing of ours catches it."""


class Deadly(Silent):
    def metrics(self, values, step):
        raise Killed


def rows(folder: Path) -> Rows:
    train, val, pixels, normalization = tiny.make(folder / "pixels", rows=24)
    return Rows(train, val, pixels, normalization, (tiny.LABELS,))


def place(folder: Path, tracker=Silent) -> Place:
    @contextmanager
    def opened(name):
        yield tracker()

    return Place("study", folder / "tune.db", folder / "work", LocalFiles(folder / "checkpoints"), opened)


def searched(folder: Path, trials: int, search: SearchConfig = SEARCH, config=CONFIG) -> TuneResult:
    return tune(rows(folder), config, search, TuneBudget(trials=trials), place(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TuneResult:
    return searched(tmp_path_factory.mktemp("whole"), 4)


def test_a_search_that_was_killed_in_a_trial_ends_as_one_that_was_not(tmp_path, whole):
    searched(tmp_path, 1)
    with pytest.raises(Killed):
        tune(rows(tmp_path), CONFIG, SEARCH, TuneBudget(trials=4), place(tmp_path, Deadly))
    assert searched(tmp_path, 4).digest() == whole.digest()


def test_what_is_found_is_the_best_and_within_the_space(whole):
    assert [trial.number for trial in whole.trials] == [1, 2, 3, 4]
    scores = [trial.score for trial in whole.trials if trial.state == "complete"]
    assert whole.winner().score == max(scores)
    assert len({json.dumps(dict(trial.values)) for trial in whole.trials}) == 4
    for trial in whole.trials:
        assert 1e-4 <= trial.values["train.lr"] <= 1e-2
        assert trial.values["models.0.hidden"] in ([], [8])
        tuned = apply(CONFIG, trial.values)
        assert tuned.train.stages[0].lr == trial.values["train.lr"]
        assert list(tuned.models[0].hidden) == trial.values["models.0.hidden"]
    assert TuneResult.model_validate_json(whole.model_dump_json()) == whole


def test_the_seed_decides_and_a_finished_study_trains_nothing_more(tmp_path, whole):
    other = searched(tmp_path, 1, SEARCH.model_copy(update={"seed": 1}))
    assert other.trials[0].values != whole.trials[0].values
    again = searched(tmp_path, 1, SEARCH.model_copy(update={"seed": 1}))
    assert again == other and again.trials[0].seconds == other.trials[0].seconds


def test_pictures_and_page_show_every_trial(whole):
    drawn = tuning.figures(whole)
    assert {item.name for item in drawn} >= {"history"}
    assert drawn[0].csv.count("\n") == 5
    assert drawn[0].png == tuning.history(whole).png
    assert all(name in tuning.tune_page(whole) for name in SPACE)
    assert tuning.importance(whole.model_copy(update={"importance": {"train.lr": 0.7, "b": 0.3}})).png


def test_bad_trials_are_pruned_and_diverged_ones_are_no_end(tmp_path):
    # A learning rate that cannot learn against one that diverges: the rest of the space is a single good point.
    space = {"train.lr": {"kind": "choice", "values": [1e-3, 1e30]}, "train.seed": {"kind": "int", "low": 0, "high": 9}}
    search = SearchConfig.model_validate({"startup": 1, "warmup": 0, "space": space})
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"clip": 0.0})})
    result = searched(tmp_path, 6, search, config)
    states = {trial.state for trial in result.trials}
    assert "complete" in states and states & {"pruned", "failed"}
    for trial in result.trials:
        assert (trial.state == "complete") != bool(trial.reason)
    assert result.winner().values["train.lr"] == 1e-3
    assert not LocalFiles(tmp_path / "checkpoints").names()


def test_without_a_single_whole_trial_it_says_why(tmp_path):
    space = {"train.lr": {"kind": "choice", "values": [1e30, 1e31]}}
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"clip": 0.0})})
    with pytest.raises(TrainingError, match="no trial came to its end: trial 1 the loss is"):
        searched(tmp_path, 1, SearchConfig.model_validate({"space": space}), config)


# -- the door ------------------------------------------------------------------------------------

REFUSED = {
    "unknown key": ("train.stages.0.lrr: {kind: log, low: 1, high: 2}", "train.stages.0.lrr: expected a setting's name",
                    "did you mean train.stages.0.lr?"),
    "no such stage": ("train.stages.3.lr: {kind: log, low: 1, high: 2}", "train.stages.3.lr: expected", "did you mean"),
    "bounds": ("train.lr: {kind: log, low: 2.0, high: 1.0}", "log needs `low` below `high`", "examples"),
    "no bounds": ("train.lr: {kind: float}", "float needs `low` below `high`", "examples"),
    "log of nought": ("train.lr: {kind: log, low: 0.0, high: 1.0}", "log needs a `low` above 0", "examples"),
    "kind": ("train.lr: {kind: logg, low: 0.0, high: 1.0}", "space.train.lr.kind", "examples"),
    "one choice": ("train.batch_size: {kind: choice, values: [8]}", "at least two `values`", "examples"),
    "impossible": ("model.dropout: {kind: float, low: 0.0, high: 1.5}",
                   "models.0.dropout: expected a number of at most 1", ""),
    "wrong type": ("train.batch_size: {kind: float, low: 1.0, high: 8.5}",
                   "train.batch_size: expected a whole number", ""),
    "data": ("split.seed: {kind: int, low: 0, high: 3}", "split.seed changes the data", "search below train"),
    "size": ("model.size: {kind: choice, values: [32, 64]}", "model.size changes the data", "another input size"),
    "monitor": ("train.monitor: {kind: choice, values: [auroc, loss]}", "train.monitor is what trials are judged by",
                "for all trials"),
    "a section": ("train.augment: {kind: choice, values: [a, b]}", "train.augment is a section", "name one"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_search_space_is_checked_before_anything_runs(case, tmp_path, monkeypatch):
    line, message, hint = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"space:\n  {line}\n")
    with pytest.raises(ConfigError) as refusal:
        read_search("mine.yaml", "phantom", [])
    assert "mine.yaml: " in refusal.value.message
    assert message in refusal.value.message
    assert hint in refusal.value.hint


LOSSES = {
    "train.loss_weights.lungs": "{kind: float, low: 0.1, high: 2.0}",
    "train.label_smoothing": "{kind: float, low: 0.0, high: 0.2}",
    "train.class_weights": "{kind: choice, values: [true, false]}",
}


@pytest.mark.parametrize("key", LOSSES)
def test_losses_are_not_searched_by_the_loss(key, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"space:\n  {key}: {LOSSES[key]}\n  train.lr: {{kind: log, low: 1.0e-4, high: 1.0e-2}}\n")
    assert read_search(str(path), "phantom", ["train.monitor=auroc"]).space
    with pytest.raises(ConfigError, match=f"varies {key}, and judges by train.monitor=loss") as refusal:
        read_search(str(path), "phantom", ["train.monitor=loss"])
    assert "train.monitor=auroc" in refusal.value.hint
    path.write_text("space:\n  train.lr: {kind: log, low: 1.0e-4, high: 1.0e-2}\n")
    assert read_search(str(path), "phantom", ["train.monitor=loss"]).space


def test_losses_are_not_searched_where_rows_leave_only_the_loss_to_judge_by(tmp_path):
    """`auto` is the loss where no validation row has a known label."""
    found = rows(tmp_path)
    table = found.val.table
    for name in tiny.LABELS.columns():
        nothing = pyarrow.nulls(len(found.val), table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, nothing)
    blind = replace(found, val=replace(found.val, table=table))
    space = {"train.label_smoothing": {"kind": "float", "low": 0.0, "high": 0.2}}
    search = SearchConfig.model_validate({"space": space})
    with pytest.raises(ConfigError, match="different scales"):
        tune(blind, CONFIG, search, TuneBudget(trials=1), place(tmp_path))
    assert not (tmp_path / "tune.db").exists()


def test_a_setting_cannot_be_searched_and_set(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("space:\n  train.lr: {kind: log, low: 1.0e-4, high: 1.0e-2}\n")
    assert read_search(str(path), "phantom", []).space
    with pytest.raises(ConfigError, match=r"train.lr is set on the command line too, as train.stages.0.lr"):
        read_search(str(path), "phantom", ["train.stages.0.lr=1e-3"])


@pytest.mark.parametrize("name", ["basics", "augmentation"])
def test_every_shipped_search_space_fits_every_shipped_run(name, tmp_path):
    from medflow.config.places import names, shipped

    assert name in {path.stem for path in (shipped() / "recipes" / "search").glob("*.yaml")}
    for run in names(shipped()):
        if len(load(run).models) == 1:
            assert read_search(name, run, []).space


def test_one_model_is_tuned_at_a_time(tmp_path):
    two = "models=[{kind: timm, name: resnet18}, {kind: timm, name: resnet34}]"
    with pytest.raises(ConfigError, match="lists 2 models, and one is tuned at a time"):
        read_search("basics", "phantom", [two])


def test_a_misspelt_space_is_told_of():
    with pytest.raises(ConfigError) as refusal:
        read_search("basic", "phantom", [])
    assert "did you mean 'basics'?" in refusal.value.hint

"""The whole length on a real local ZenML store and a real MLflow on SQLite, on the smallest phantom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medflow import cli, datasets
from medflow.config.reading import load
from medflow.errors import ConfigError, MedflowError, ModelError
from medflow.home import home
from medflow.lineage import chain
from medflow.platform import lineage, naming, registry, reports, runs, stack, trackers, verify
from medflow.platform.outcomes import RunOutcome
from medflow.records import Generated

UNCACHED = {"resolve", "incumbent", "promote", "record"}
SMALL = (
    "source.images=72",
    "models.0.size=32",
    "models.0.channels=[8,16]",
    "models.0.label_hidden=[16]",
    "models.0.label_dropout=[0.1,0.1]",
    "train.epochs=1",
    "train.batch_size=16",
    "evaluate.resamples=100",
    "promote.resamples=100",
    "promote.floors=[]",
    "prune.stage.epochs=1",
    "prune.round_to=2",
    "quantize.calibration_images=8",
)
#: What the second run says otherwise.
BESIDE = ("trackers=[tensorboard]", "train.workers=1")


def small(*overrides: str):
    return load("phantom", (*SMALL, *overrides))


@pytest.fixture(scope="module")
def first() -> RunOutcome:
    return runs.run(small())


@pytest.fixture(scope="module")
def second(first: RunOutcome) -> RunOutcome:
    # Neither where to log, nor how many threads load, nor the name is part of what is learnt: nothing is done anew.
    return runs.run(small(*BESIDE), name="logged.twice")


def test_floors_of_heads_left_out_are_no_obstacle_and_those_of_no_head_are(capsys):
    floors = "promote.floors=[{metric: auroc, value: 0.7}, {metric: dice, value: 0.7}]"
    settled = runs.settled(load("phantom", ["heads=[diagnosis]", floors]))
    assert [floor.metric for floor in settled.promote.floors] == ["auroc"]
    assert capsys.readouterr().err.count("dice 0.7 not asked for") == 1
    with pytest.raises(ConfigError, match="asks for auroc of head 'lungs'"):
        runs.settled(
            load("phantom", ["heads=[diagnosis]", "promote.floors=[{metric: auroc, value: 0.7, head: lungs}]"])
        )


def steps(outcome: RunOutcome, *, cached: bool) -> set[str]:
    return {step.name for step in outcome.steps if step.cached is cached}


def test_first_run_goes_the_whole_way(first):
    names = [step.name for step in first.steps]
    assert first.status == "completed"
    assert len(names) == len(set(names))
    assert names[0] == "resolve" and names[-1] == "record"
    assert {"evaluate_test", "evaluate_incumbent", "package", "choose", "prune"} <= set(names)
    assert first.promotion and first.promotion.promoted, first.promotion
    assert {score.metric for score in first.metrics} >= {"auroc", "accuracy", "dice"}
    # ECE is biased upwards in every resample, so that its interval can lie above its value.
    known = [score for score in first.metrics if score.value == score.value and score.metric != "ece"]
    assert all(score.low <= score.value <= score.high for score in known)
    json.loads(first.model_dump_json())


def test_second_run_is_cached_and_promotes_nothing(first, second):
    assert steps(second, cached=False) == UNCACHED
    assert second.promotion and not second.promotion.promoted
    assert "identical" in " ".join(second.promotion.reasons)
    assert second.model == first.model


def test_a_run_is_called_what_was_asked_for_and_a_name_that_is_taken_gets_a_number(first, second):
    assert second.name == "logged.twice" != first.name
    assert [run.name for run in runs.recent(2)] == [second.name, first.name]
    assert str(reports.find_run("logged.twice").id) == second.run_id
    assert (naming.free("logged.twice"), naming.free("logged")) == ("logged.twice-2", "logged")


def test_every_run_is_one_mlflow_parent_and_both_name_each_other(first, second):
    mlflow = trackers.client()
    for outcome in (first, second):
        run = stack.client().get_pipeline_run(outcome.run_id)
        parent = mlflow.get_run(str(run.run_metadata["mlflow_run_id"]))
        assert parent.data.tags[trackers.RUN_TAG] == outcome.run_id
        assert parent.data.tags["zenml.model"] == outcome.model
        assert parent.info.status == "FINISHED"
        assert any(name.startswith("test/diagnosis/macro/") for name in parent.data.metrics)
        query = f"tags.`{trackers.RUN_TAG}` = '{outcome.run_id}' and tags.`{trackers.KIND_TAG}` = 'pipeline'"
        assert len(mlflow.search_runs([parent.info.experiment_id], query)) == 1


def test_the_parent_has_validation_scores_of_every_model_and_graph(first, second):
    for outcome in (first, second):
        run = stack.client().get_pipeline_run(outcome.run_id)
        metrics = trackers.client().get_run(str(run.run_metadata["mlflow_run_id"])).data.metrics
        judged = {step.name.removeprefix("evaluate_val_") for step in outcome.steps if "evaluate_val_" in step.name}
        assert {"monai_unet", "onnx", "pruned_int8"} <= judged
        assert {name.split("/")[1] for name in metrics if name.startswith("val/")} == judged
        evaluation = run.steps["evaluate_val_onnx"].outputs["evaluation"][0].load()
        assert metrics["val/onnx/diagnosis/macro/auroc"] == evaluation.score("auroc", head="diagnosis").value
        assert {name.split("/")[3] for name in metrics if name.startswith("val/")} == {"macro", "micro", "weighted"}


def test_the_parent_has_the_settings_of_its_run_as_a_yaml_that_runs(second, tmp_path):
    run = stack.client().get_pipeline_run(second.run_id)
    file = trackers.client().download_artifacts(str(run.run_metadata["mlflow_run_id"]), "config.yaml", str(tmp_path))
    assert load(file) == runs.settled(small(*BESIDE))


def test_the_version_of_a_content_points_at_its_files_which_are_sent_once(first, second, tmp_path):
    mlflow = trackers.client()
    version = mlflow.get_model_version_by_alias("phantom", "production")
    runs_ = [stack.client().get_pipeline_run(outcome.run_id) for outcome in (first, second)]
    parents = [str(run.run_metadata["mlflow_run_id"]) for run in runs_]
    assert version.source == f"runs:/{parents[0]}/model"
    sent, again = ({item.path for item in mlflow.list_artifacts(parent, "model")} for parent in parents)
    assert {"model/model.onnx", "model/card.json", "model/package.json"} <= sent
    assert again == {"model/evaluation.json", "model/package.json", "model/promotion.json"}
    pictures = {item.path for item in mlflow.list_artifacts(parents[0], "model/test")}
    assert {"model/test/roc_diagnosis.png", "model/test/confusion_diagnosis.png"} <= pictures
    chosen = runs_[0].steps["choose"].outputs["chosen"][0].load()
    graph = Path(mlflow.download_artifacts(parents[0], "model/model.onnx", str(tmp_path)))
    assert graph.read_bytes() == chosen.weights.read_bytes()


def test_each_trained_model_is_one_child_run(first):
    run = stack.client().get_pipeline_run(first.run_id)
    mlflow = trackers.client()
    parent = str(run.run_metadata["mlflow_run_id"])
    experiment = mlflow.get_run(parent).info.experiment_id
    children = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    trained = [child for child in children if child.info.run_name.startswith("train ")]
    assert len(trained) == sum(step.name.startswith("train_") for step in first.steps)
    assert all(child.info.status == "FINISHED" and child.data.metrics for child in trained)


def test_model_version_links_everything_from_data_to_bento(first):
    version = stack.client().get_model_version("phantom", int(first.model.partition("@")[2]))
    facts = version.run_metadata
    assert set(facts["artifacts"]) == set(registry.LINKED)
    assert all(len(digest) == 64 for digest in facts["digests"].values())
    found = registry.find(first.model)
    assert found.stages == ("production",)
    assert registry.find("production").ref == first.model


def test_lineage_goes_from_the_package_back_to_the_source_by_content(first, second):
    for outcome in (first, second):
        run = stack.client().get_pipeline_run(outcome.run_id)
        found = {item.artifact for item in chain(lineage.of_run(run), "package", "package")}
        assert found >= {
            "package",
            "chosen",
            "selected",
            "trained",
            "train",
            "val",
            "normalization",
            "pixels",
            "source",
        }
        # Test rows judge the package and go into its model card; they never reach what was trained or chosen.
        assert "test" not in {item.artifact for item in chain(lineage.of_run(run), "choose", "chosen")}


def test_the_report_of_a_model_shows_images_of_its_test_rows(first, tmp_path):
    document = reports.write(first.model, tmp_path).read_text()
    assert 'alt="Images with predicted and true masks"' in document


def test_mlflow_alias_follows_the_stage(first):
    alias = trackers.client().get_model_version_by_alias("phantom", "production")
    assert alias.tags["medflow.package"] == registry.find(first.model).package_digest


def test_artifacts_are_whole(first):
    verified = verify.verify()
    assert verified.artifacts > 20 and verified.bytes > 0
    assert verified.damaged == ()


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_damaged_artifact_runs_its_step_again(second, damage):
    run = stack.client().get_pipeline_run(runs.run(small()).run_id)
    artifact = run.steps["normalize"].outputs["normalization"][0]
    file = Path(artifact.uri) / "record.json"
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:10])
    again = runs.run(small())
    # The same content comes out, so the wave stops there.
    assert steps(again, cached=False) == UNCACHED | {"normalize"}


def test_a_challenger_is_compared_with_the_incumbent_on_the_same_rows(first, second):
    challenger = runs.run(small("train.seed=7"))
    assert "train_monai_unet" in steps(challenger, cached=False)
    assert "split" in steps(challenger, cached=True)
    assert challenger.promotion and challenger.promotion.comparisons
    comparison = challenger.promotion.comparisons[0]
    assert comparison.low <= comparison.difference <= comparison.high
    assert challenger.promotion.incumbent == registry.find(first.model).package_digest
    assert any("learnt from none of the" in reason for reason in challenger.promotion.reasons)


def test_new_data_keeps_every_group_in_its_part(first):
    before = stack.client().get_pipeline_run(first.run_id).steps["split"].outputs
    roles = {role: set(before[role][0].load().column("group")) for role in ("train", "val", "test")}
    grown = runs.run(small("source.images=96"))
    after = stack.client().get_pipeline_run(grown.run_id).steps["split"].outputs
    for role, groups in roles.items():
        now = set(after[role][0].load().column("group"))
        assert groups <= now, role
    assert runs.run(small()).steps[3].cached, "the first source is split as it was before"


@pytest.mark.slow
def test_after_a_new_draw_the_incumbent_is_not_judged_on_what_it_learnt(first):
    redrawn = runs.run(small("split.seed=1")).promotion
    assert redrawn and not redrawn.promoted and redrawn.comparisons == ()
    assert redrawn.unseen and redrawn.unseen.images < redrawn.unseen.test_images and not redrawn.unseen.unknown
    assert "the incumbent learnt from" in redrawn.reasons[1] and "promote.unseen_groups=20" in redrawn.reasons[1]


def test_a_failing_step_raises_its_own_error_and_closes_mlflow():
    with pytest.raises(MedflowError) as caught:
        runs.run(small("validate.tiny=error", "validate.tiny_pixels=5000"))
    assert "tiny" in str(caught.value)
    assert caught.value.hint
    last = stack.client().list_pipeline_runs(sort_by="desc:created", size=1, hydrate=True).items[0]
    assert str(last.status.value) == "failed"
    parent = trackers.client().get_run(str(last.run_metadata["mlflow_run_id"]))
    assert parent.info.status == "FAILED"


@pytest.mark.slow
def test_a_tuning_shares_the_data_steps_and_its_trials_are_children_of_one_mlflow_run(second):
    """After the trainings: its data steps are theirs. Asked again with a larger budget, the same study goes on."""
    from medflow.config.sections import SearchConfig, TuneBudget
    from medflow.platform import studies

    search = SearchConfig.model_validate({"space": {"train.lr": {"kind": "log", "low": 1e-4, "high": 1e-2}}})
    found = [studies.run(small("trackers=[tensorboard]"), search, TuneBudget(trials=count)) for count in (1, 2)]
    assert found[0][1].study == found[1][1].study
    assert found[1][1].trials[:1] == found[0][1].trials
    run = stack.client().get_pipeline_run(found[1][0])
    cached = {name for name, step in run.steps.items() if step.status.value == "cached"}
    assert cached == {"ingest", "validate", "split", "normalize"}
    assert "test" not in {name for step in (run.steps["tune"],) for name in step.inputs}
    mlflow = trackers.client()
    parent = mlflow.get_run(str(run.run_metadata["mlflow_run_id"]))
    assert parent.info.status == "FINISHED" and "best/train.lr" in parent.data.params
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = mlflow.search_runs([parent.info.experiment_id], query)
    assert {child.info.run_name for child in children} == {"trial 1", "trial 2"}
    assert list((home() / "tensorboard" / "phantom").rglob("events.out.*"))


def test_a_model_that_timm_lacks_is_refused_before_anything_is_read():
    before = len(runs.recent(100))
    model = "models=[{kind: timm, name: resnet19, pretrained: none}]"
    unknown = load("phantom", [model, "heads=[diagnosis]", "promote.floors=[]"])
    with pytest.raises(ModelError, match="resnet19"):
        runs.run(unknown)
    assert len(runs.recent(100)) == before


def test_a_finished_model_is_judged_on_what_it_was_not_fitted_on(first, tmp_path, capfd):
    """The images of its own run again: the test rows alone are left, and the scores are those of the run."""
    (tmp_path / "again").mkdir()
    datasets.get("phantom").twin(tmp_path / "again", Generated(images=72))
    registry.bundle(first.model, tmp_path / "bundle")
    for model in (first.model, str(tmp_path / "bundle")):
        words = ["evaluate", model, "--source", str(tmp_path / "again"), "--to", str(tmp_path / "judged"), "--json"]
        assert cli.run([*words, "evaluate.resamples=100"]) == 0
        told = json.loads(capfd.readouterr().out)
        judged = {(item["head"], item["label"], item["metric"]): item["value"] for item in told["evaluation"]["scores"]}
        ours = {(item.head, item.label, item.metric): item.value for item in first.metrics if item.value == item.value}
        assert {name: judged[name] for name in ours} == pytest.approx(ours)
        assert told["compared"] + told["judged"] == 72 and told["judged"] == max(item.n for item in first.metrics)
        assert json.loads((tmp_path / "judged" / "evaluation.json").read_text())["judged"] == told["judged"]
        assert "images of the training compared with" in (tmp_path / "judged" / "evaluation.html").read_text()

"""A finished model on labelled images from elsewhere: what fits, what is left out, what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import handmade
import numpy as np
import pytest
import tiny
from PIL import Image
from pydantic import TypeAdapter

from medflow import datasets, fetch
from medflow.config.sections import Declaration, EvaluateConfig, RunConfig, SourceConfig
from medflow.errors import DataError
from medflow.evaluate import evaluate
from medflow.external import Judged, judge
from medflow.ingest import ingest
from medflow.matching import match
from medflow.records import Bundle, ExternalEvaluation, HeadSpec, Past
from medflow.report.external import external_page
from medflow.seen import past_of

UNKNOWN = Past(unknown="nobody told")
LABEL = {"kind": "exclusive", "name": "seen_by_a_reader", "labels": ["bright", "dark"]}
MASK = {"kind": "mask", "name": "both_lungs", "labels": ["lung"]}
FOLDERS = {"kind": "folder", "heads": [LABEL], "images": "{label}/{group}", "grouped_by": "patient"}
WITH_MASKS = {**FOLDERS, "heads": [LABEL, MASK], "images": "{label}/images", "masks": "{label}/masks",
              "grouped_by": "near-duplicates"}  # fmt: skip


def scan(path: Path, level: int, seed: int) -> None:
    """A gray image around a level, with a picture of its own."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(-40, 41, (8, 8)).astype(np.int8).view(np.uint8) ^ 128, "L")
    shape = np.asarray(coarse.resize((80, 64), Image.Resampling.BICUBIC), dtype=float) - 128
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(level + shape - shape.mean(), 0, 255).astype(np.uint8)).save(path)


def folder(root: Path, patients: range, wrong: int = 0) -> Path:
    """Two images a patient: even patients dark, odd ones bright; the first ``wrong`` are labelled the other way."""
    for place, patient in enumerate(patients):
        bright = (patient % 2 == 1) != (place < wrong)
        for number in range(2):
            name = f"{'bright' if bright else 'dark'}/p{patient}/{number}.png"
            scan(root / name, 160 if patient % 2 else 96, seed=100 * patient + number)
    return root


def settings(root: Path, declared: dict) -> RunConfig:
    declaration = TypeAdapter(Declaration).validate_python(declared)
    return RunConfig(
        dataset="elsewhere", declare=declaration, models=(tiny.TINY["timm"],),
        source=SourceConfig(kind="folder", path=str(root)), evaluate=EvaluateConfig(resamples=100),
    )  # fmt: skip


def judged(bundle: Bundle, root: Path, work: Path, known: Past = UNKNOWN, declared: dict = FOLDERS) -> Judged:
    config = settings(root, declared)
    return judge(bundle, datasets.get(config.dataset, config.declare), config, known, work)


def known_from(root: Path, work: Path) -> Past:
    """The identities of a model that was fitted on every image of a folder."""
    config = settings(root, FOLDERS)
    spec = datasets.get(config.dataset, config.declare)
    manifest, _ = ingest(fetch.resolve(config.source, spec.card), spec, (32,), config.ingest, work, workers=1)
    return past_of(manifest, manifest.take([]), manifest)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return handmade.bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def fresh(bundle, tmp_path_factory) -> Judged:
    """The model and 12 patients whom it may or may not have seen; two of them are labelled wrong."""
    root = tmp_path_factory.mktemp("fresh")
    return judged(bundle, folder(root / "images", range(12), wrong=2), root / "work")


def test_every_metric_is_measured_at_the_models_own_thresholds(bundle, fresh):
    evaluation = fresh.external.evaluation
    assert (evaluation.role, evaluation.bundle_digest) == ("external", bundle.digest())
    assert evaluation.score("accuracy").value == pytest.approx(20 / 24)
    assert (
        evaluation.confusion["diagnosis"] == ((10, 2), (2, 10))
        or sum(map(sum, evaluation.confusion["diagnosis"])) == 24
    )
    assert {score.head for score in evaluation.scores} == {"diagnosis"}, "no truth, no score"
    low, high = (getattr(evaluation.score("accuracy"), end) for end in ("low", "high"))
    assert low < 20 / 24 <= high
    assert (fresh.external.judged, fresh.external.groups) == (24, 12)
    assert fresh.predictions.thresholds == bundle.card.thresholds


def test_unknown_training_images_are_said_to_be_unknown(fresh):
    assert fresh.external.compared is None and fresh.external.left_out == ()
    assert any("not known which images" in note and "nobody told" in note for note in fresh.external.notes)
    assert any("no truth for lung" in note for note in fresh.external.notes)


def test_weights_from_a_file_are_said_to_have_an_unknown_past(bundle, fresh, tmp_path):
    card = bundle.card.model_copy(update={"starts": ("mine.safetensors",)})
    told = judged(replace(bundle, card=card), folder(tmp_path / "images", range(4)), tmp_path / "work")
    assert told.external.notes[0].startswith("The model started from mine.safetensors.")
    assert not any("started from" in note for note in fresh.external.notes)


def test_the_result_and_the_page_say_it(fresh):
    again = ExternalEvaluation.model_validate_json(fresh.external.model_dump_json())
    assert again.evaluation.score("accuracy") == fresh.external.evaluation.score("accuracy")
    page = external_page(fresh.external, fresh.predictions, fresh.samples)
    for words in ("not known which images", "ROC of diagnosis", "Precision and recall of", "Confusion of diagnosis"):
        assert words in page
    assert 'src="http' not in page


def test_images_of_the_training_are_left_out_and_told(bundle, tmp_path):
    """Patients 0 to 5 were learnt from. Of 4 to 11 the first two come again: one by name, one renamed."""
    known = known_from(folder(tmp_path / "training", range(6)), tmp_path / "first")
    new = folder(tmp_path / "new", range(5, 12))
    scan(new / "dark/renamed/0.png", 96, seed=400)
    scan(new / "dark/renamed/1.png", 96, seed=999)
    found = judged(bundle, new, tmp_path / "second", known).external
    assert {item.reason: item.images for item in found.left_out} == {
        "the same file as an image of the training": 3,
        "the same patient as such an image": 1,
    }
    assert (found.images, found.judged, found.compared) == (16, 12, 12)
    assert not any("not known" in note for note in found.notes)
    assert found.evaluation.score("accuracy").value == 1.0


def test_where_all_was_seen_nothing_is_judged(bundle, tmp_path):
    root = folder(tmp_path / "training", range(4))
    with pytest.raises(DataError, match="fitted on all of them") as refused:
        judged(bundle, root, tmp_path / "second", known_from(root, tmp_path / "first"))
    assert "--groups other" in refused.value.hint


def test_masks_are_judged_where_there_are_masks(bundle, tmp_path):
    for number in range(8):
        bright = number % 2 == 1
        name = f"{'bright' if bright else 'dark'}/images/{number}.png"
        scan(tmp_path / "new" / name, 160 if bright else 96, seed=number)
        mask = tmp_path / "new" / name.replace("images", "masks")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 80), 255 if bright else 0, dtype=np.uint8)).save(mask)
    found = judged(bundle, tmp_path / "new", tmp_path / "work", declared=WITH_MASKS).external
    dice = found.evaluation.score("dice", head="lung")
    assert dice.n == 8 and dice.value > 0.4
    assert not any("no truth" in note for note in found.notes)


def test_a_class_that_is_not_there_is_said_to_be_undefined(bundle, tmp_path):
    root = folder(tmp_path / "new", range(0, 12, 2))
    found = judged(bundle, root, tmp_path / "work").external
    assert any(note.startswith("No image shows bright") for note in found.notes)
    assert found.evaluation.score("recall", label="dark").value == 1.0
    assert np.isnan(found.evaluation.score("auroc").value)


def test_only_a_part_of_the_sources_own_lists(bundle, tmp_path):
    declared = {**FOLDERS, "images": "{split}/{label}/{group}"}
    folder(tmp_path / "new" / "train", range(4))
    folder(tmp_path / "new" / "test", range(4, 10))
    config = settings(tmp_path / "new", declared)
    spec = datasets.get(config.dataset, config.declare)
    assert judge(bundle, spec, config, UNKNOWN, tmp_path / "a", part="test").external.images == 12
    with pytest.raises(DataError, match="call no image val; there is test, train"):
        judge(bundle, spec, config, UNKNOWN, tmp_path / "b", part="val")


# -- heads ---------------------------------------------------------------------------------------

DIAGNOSIS, LUNG = handmade.DIAGNOSIS, handmade.LUNG
SIGNS = HeadSpec(kind="independent", name="signs", labels=("dark", "bright"))


@pytest.mark.parametrize(
    ("heads", "words", "hint"),
    [
        ((SIGNS,), "diagnosis is exclusive, and the images' signs is independent", "of the kind"),
        ((DIAGNOSIS.model_copy(update={"labels": ("dark", "brigth")}),), "labelled 'brigth'", "did you mean 'bright'"),
        ((LUNG.model_copy(update={"labels": ("heart",)}),), "labelled 'heart'", "declare.ignore"),
        ((), "labelled with nothing", "--dataset"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused(heads, words, hint):
    with pytest.raises(DataError, match=words) as refused:
        match((DIAGNOSIS, LUNG), heads)
    assert hint in refused.value.hint


def test_labels_in_another_order_and_a_label_less_still_fit():
    model = (SIGNS, LUNG)
    found = match(model, (HeadSpec(kind="independent", name="x", labels=("bright",)),))
    assert found.judged() == {"signs"}
    assert found.notes() == [
        "These images have no truth for lung, which is not judged.",
        "These images are not labelled for dark (signs).",
    ]


def test_on_the_same_rows_it_is_the_evaluation_of_a_run(bundle, fresh, tmp_path):
    """One way to measure: the same function, rows and bundle give the same numbers, whatever the rows are called."""
    root = folder(tmp_path / "images", range(12), wrong=2)
    config = settings(root, {**FOLDERS, "heads": [{**LABEL, "name": "diagnosis", "labels": ["dark", "bright"]}]})
    spec = datasets.get(config.dataset, config.declare)
    rows, pixels = ingest(
        fetch.resolve(config.source, spec.card), spec, (32,), config.ingest, tmp_path / "w", workers=1
    )
    run = evaluate(bundle, rows, pixels, config.evaluate, "test").evaluation
    ours = {(item.label, item.metric): item.value for item in fresh.external.evaluation.scores}
    theirs = {(item.label, item.metric): item.value for item in run.scores if item.head == "diagnosis"}
    assert ours == pytest.approx(theirs, nan_ok=True)

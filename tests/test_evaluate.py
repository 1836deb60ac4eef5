"""Evaluation of bundles whose right answers are known, and of what cannot be evaluated."""

from __future__ import annotations

import handmade
import numpy as np
import pytest
import scored
import squares

from medflow import evaluate as evaluation
from medflow import metrics
from medflow.config.sections import EvaluateConfig
from medflow.errors import DataError
from medflow.records import Bundle, Challenge, Evaluation, Incumbent, Manifest, Past

QUICK = EvaluateConfig(resamples=200)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scored.data(tmp_path_factory.mktemp("data") / "pixels", without_mask=(3, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return handmade.bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def evaluated(bundle, data):
    return evaluation.evaluate(bundle, *data, QUICK, "test")


def test_the_scores_are_those_of_the_known_answers(evaluated, data):
    rows, pixels = data
    images = np.load(pixels.root / "images.npy")
    bright = handmade.logits(images)["diagnosis"][:, 1] > 0
    true = rows.targets(handmade.DIAGNOSIS)[:, 1] > 0
    assert (bright != true).sum() == 8  # every fifth of 40 rows is wrong on purpose
    assert evaluated.evaluation.score("accuracy").value == pytest.approx(0.8)
    assert evaluated.evaluation.confusion["diagnosis"] == metrics.confusion(
        evaluated.predictions.probabilities["diagnosis"], rows.targets(handmade.DIAGNOSIS)
    )
    masks = np.load(pixels.root / "masks.npy")
    has_mask = np.array([row not in (3, 4) for row in range(40)])
    dice = metrics.overlap(images[..., 0] >= 128, masks)[:, 0]
    score = evaluated.evaluation.score("dice")
    assert (score.value, score.n) == (pytest.approx(dice[has_mask].mean(), abs=1e-7), 38)
    assert np.isnan(evaluated.predictions.mask_scores["lung"]).all(axis=1).tolist() == (~has_mask).tolist()


def test_temperature_and_thresholds_of_the_card_are_applied(evaluated, data, bundle):
    logits = handmade.logits(np.load(data[1].root / "images.npy"))["diagnosis"] / 2.0
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(evaluated.predictions.probabilities["diagnosis"][:, 1], expected, atol=1e-6)
    assert evaluated.predictions.thresholds == bundle.card.thresholds


def test_every_score_has_its_interval_and_its_rows(evaluated):
    for score in evaluated.evaluation.scores:
        assert score.low <= score.value <= score.high, score
        assert score.n == (38 if score.head == "lung" else 40)


def test_it_names_what_it_is_about(evaluated, bundle, data):
    made, said = evaluated.evaluation, evaluated.predictions
    assert made.rows_digest == said.rows_digest == data[0].digest()
    assert made.bundle_digest == said.bundle_digest == bundle.digest()
    assert (made.role, made.variant, made.bytes) == ("test", "onnx", bundle.card.bytes)
    assert said.group.tolist() == data[0].column("group").tolist()


def test_the_batch_size_changes_nothing_and_the_seed_only_intervals(evaluated, bundle, data):
    again = evaluation.evaluate(bundle, *data, QUICK.model_copy(update={"batch_size": 7}), "test")
    assert again.evaluation.digest() == evaluated.evaluation.digest()
    assert again.predictions.digest() == evaluated.predictions.digest()
    other = evaluation.evaluate(bundle, *data, QUICK.model_copy(update={"seed": 1}), "test").evaluation
    assert [item.value for item in other.scores] == [item.value for item in evaluated.evaluation.scores]
    assert [item.low for item in other.scores] != [item.low for item in evaluated.evaluation.scores]


def test_an_evaluation_survives_json_with_its_undefined_values(bundle, data):
    rows, pixels = data
    bright = rows.take(np.flatnonzero(rows.targets(handmade.DIAGNOSIS)[:, 1] == 1))
    made = evaluation.evaluate(bundle, bright, pixels, QUICK, "val").evaluation
    assert np.isnan(made.score("auroc").value)
    again = Evaluation.model_validate_json(made.model_dump_json())
    assert again.digest() == made.digest()


def test_torch_bundles_are_evaluated_by_the_same_call(tmp_path):
    rows, pixels = squares.data(tmp_path / "pixels", rows=12)
    made = squares.torch_bundle(tmp_path / "bundle", squares.UNET, rows, pixels)
    evaluated = evaluation.evaluate(made, rows, pixels, QUICK, "val")
    assert {score.head for score in evaluated.evaluation.scores} == {"diagnosis", "lung"}
    assert 0 <= evaluated.evaluation.score("dice").value <= 1


def test_no_rows_and_foreign_rows_are_refused(bundle, data):
    rows, pixels = data
    with pytest.raises(DataError, match="no rows"):
        evaluation.evaluate(bundle, rows.take([]), pixels, QUICK, "val")
    foreign = Manifest(card=rows.card, table=rows.table.drop_columns(["diagnosis.dark"]))
    with pytest.raises(DataError, match=r"diagnosis\.dark, which the rows of handmade do not have"):
        evaluation.evaluate(bundle, foreign, pixels, QUICK, "val")


# -- incumbent -----------------------------------------------------------------------------------


HELD = Challenge(stage="production")


def test_an_incumbent_is_evaluated_on_the_same_rows(evaluated, bundle, data):
    rows, pixels = data
    incumbent = Incumbent(challenge=HELD, bundle=bundle, past=Past(images=("another",)))
    again = evaluation.evaluate_incumbent(incumbent, rows, rows, pixels, QUICK, bits=3)
    assert again.evaluation.digest() == evaluated.evaluation.digest()
    assert (again.unseen.images, again.unseen.rows, again.unseen.unknown) == (len(rows), rows.digest(), "")


def test_an_incumbent_is_not_evaluated_on_what_it_learnt_from(bundle, data):
    rows, pixels = data
    incumbent = Incumbent(challenge=HELD, bundle=bundle, past=Past(images=("image0",), groups=("patient3",)))
    heard = evaluation.evaluate_incumbent(incumbent, rows, rows, pixels, QUICK, bits=3)
    assert set(rows.column("image_id")) - set(heard.predictions.image_id) == {"image0", "image1", "image6", "image7"}
    assert (heard.unseen.test_images, heard.unseen.images) == (len(rows), len(rows) - 4)
    assert heard.evaluation.rows_digest == heard.unseen.rows != rows.digest()


def test_an_incumbent_of_unknown_past_is_not_evaluated(bundle, data):
    rows, pixels = data
    heard = evaluation.evaluate_incumbent(Incumbent(challenge=HELD, bundle=bundle), rows, rows, pixels, QUICK, bits=3)
    assert (heard.evaluation.scores, len(heard.predictions), heard.unseen.images) == ((), 0, 0)
    assert heard.unseen.unknown
    everything = Past(images=tuple(rows.column("image_id")))
    heard = evaluation.evaluate_incumbent(
        Incumbent(challenge=HELD, bundle=bundle, past=everything), rows, rows, pixels, QUICK, bits=3
    )
    assert (heard.evaluation.scores, heard.unseen.images, heard.unseen.unknown) == ((), 0, "")


def test_no_incumbent_and_one_that_reads_other_pixels_give_no_scores(bundle, data, capsys):
    rows, pixels = data
    nothing = evaluation.evaluate_incumbent(Incumbent(challenge=HELD), rows, rows, pixels, QUICK, bits=3)
    assert (nothing.evaluation.scores, len(nothing.predictions)) == ((), 0)
    spec = bundle.card.preprocess.pixels.model_copy(update={"height": 64, "width": 64})
    card = bundle.card.model_copy(update={"preprocess": bundle.card.preprocess.model_copy(update={"pixels": spec})})
    other = Incumbent(challenge=HELD, bundle=Bundle(root=bundle.root, card=card), past=Past())
    unheard = evaluation.evaluate_incumbent(other, rows, rows, pixels, QUICK, bits=3)
    assert (unheard.evaluation.scores, len(unheard.predictions)) == ((), 0)
    assert "add 64 to ingest.extra_sizes" in capsys.readouterr().err


# -- samples -------------------------------------------------------------------------------------


def test_samples_show_true_and_predicted_masks_from_a_seed(bundle, data):
    shown = evaluation.samples(bundle, *data, count=6, seed=3)
    assert shown.images.shape == (6, 32, 32, 1) and shown.predicted.shape == (6, 32, 32)
    assert shown.has_mask.all()  # 38 of 40 have one, and those come first
    np.testing.assert_array_equal(shown.predicted, shown.images[..., 0] >= 128)
    assert evaluation.samples(bundle, *data, count=6, seed=3).image_id.tolist() == shown.image_id.tolist()
    assert evaluation.samples(bundle, *data, count=6, seed=4).image_id.tolist() != shown.image_id.tolist()

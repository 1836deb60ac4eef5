"""Metrics against scikit-learn, torchmetrics and MONAI, and by what must always hold."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import EXCLUSIVE, INDEPENDENT, MASK, predictions
from sklearn import metrics as oracle

from medflow import metrics
from medflow.errors import DataError
from medflow.metrics import ExclusiveMeasures, IndependentMeasures, MaskMeasures, Ranking, plain, values_by_name
from medflow.records import Threshold

SEEDS = st.integers(0, 2**31)


def exclusive(seed: int, rows: int = 120, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Rounded probabilities, so that there are ties, and one-hot targets in which every class is present."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.dirichlet([0.7] * 3, rows), digits)
    classes = np.concatenate([[0, 1, 2], rng.integers(0, 3, rows - 3)])
    scores[np.arange(rows), classes] += 0.2
    scores /= scores.sum(axis=1, keepdims=True)
    return scores.astype(np.float32), np.eye(3)[classes]


def independent(seed: int, rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, 2)) < 0.3).astype(float)
    targets[:2] = [[0, 1], [1, 0]]
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * targets, 0.2), 0, 1), 2)
    return scores.astype(np.float32), targets


# -- exclusive -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_exclusive_metrics_equal_sklearn(seed):
    scores, targets = exclusive(seed)
    found = values_by_name(ExclusiveMeasures(EXCLUSIVE, scores, targets), len(scores))
    true, decided = targets.argmax(1), scores.argmax(1)
    close = {
        ("micro", "accuracy"): oracle.accuracy_score(true, decided),
        ("micro", "kappa"): oracle.cohen_kappa_score(true, decided),
        ("macro", "balanced_accuracy"): oracle.balanced_accuracy_score(true, decided),
        ("macro", "precision"): oracle.precision_score(true, decided, average="macro", zero_division=0),
        ("macro", "recall"): oracle.recall_score(true, decided, average="macro"),
        ("macro", "f1"): oracle.f1_score(true, decided, average="macro"),
        **{
            ("weighted", metric): judge(true, decided, average="weighted", zero_division=0)
            for metric, judge in (
                ("precision", oracle.precision_score),
                ("recall", oracle.recall_score),
                ("f1", oracle.f1_score),
            )
        },
        ("macro", "auroc"): np.mean([oracle.roc_auc_score(true == k, scores[:, k]) for k in range(3)]),
        ("macro", "average_precision"): oracle.average_precision_score(targets, scores, average="macro"),
        ("micro", "brier"): ((scores - targets) ** 2).sum(axis=1).mean(),
    }
    for place, label in enumerate(EXCLUSIVE.labels):
        close[label, "auroc"] = oracle.roc_auc_score(true == place, scores[:, place])
        close[label, "specificity"] = oracle.recall_score(true != place, decided != place)
    assert {name: found[name] for name in close} == pytest.approx(close, abs=1e-7)


def test_exclusive_metrics_equal_torchmetrics():
    import torch
    from torchmetrics import functional as tm

    scores, targets = exclusive(3, rows=400, digits=6)
    found = values_by_name(ExclusiveMeasures(EXCLUSIVE, scores, targets), len(scores))
    given_ = torch.from_numpy(scores), torch.from_numpy(targets.argmax(1))
    task = {"task": "multiclass", "num_classes": 3}
    assert found["micro", "ece"] == pytest.approx(float(tm.calibration_error(*given_, **task, n_bins=15)), abs=1e-6)
    specificity = float(tm.specificity(*given_, **task, average="macro"))
    assert found["macro", "specificity"] == pytest.approx(specificity, abs=1e-6)
    assert found["macro", "auroc"] == pytest.approx(float(tm.auroc(*given_, **task)), abs=1e-6)
    assert found["micro", "kappa"] == pytest.approx(float(tm.cohen_kappa(*given_, **task)), abs=1e-6)


def test_unknown_rows_do_not_count():
    scores, targets = exclusive(0)
    more = np.concatenate([scores, scores[:9]]), np.concatenate([targets, np.full((9, 3), np.nan)])
    measures = ExclusiveMeasures(EXCLUSIVE, *more)
    assert set(measures.rows) == {120}
    assert values_by_name(measures, 129) == values_by_name(ExclusiveMeasures(EXCLUSIVE, scores, targets), 120)
    assert metrics.confusion(*more) == metrics.confusion(scores, targets)
    assert sum(map(sum, metrics.confusion(*more))) == 120


def test_an_absent_class_is_undefined_and_left_out_of_the_mean():
    targets = np.eye(3)[[0, 0, 1, 1]]
    scores = np.array([[0.8, 0.1, 0.1], [0.3, 0.1, 0.6], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    found = values_by_name(ExclusiveMeasures(EXCLUSIVE, scores, targets), 4)
    for metric in ("precision", "recall", "f1", "auroc", "average_precision"):
        assert np.isnan(found["c", metric]), metric
    assert found["c", "specificity"] == 0.75
    assert found["macro", "recall"] == 0.75 == found["macro", "balanced_accuracy"]
    assert found["macro", "precision"] == 1.0
    assert found["weighted", "precision"] == 1.0 and found["weighted", "recall"] == found["micro", "accuracy"] == 0.75


def test_a_class_that_is_never_decided_has_no_precision_to_gain():
    targets = np.eye(3)[[0, 1, 2]]
    scores = np.array([[0.8, 0.1, 0.1]] * 3)
    found = values_by_name(ExclusiveMeasures(EXCLUSIVE, scores, targets), 3)
    assert found["b", "precision"] == found["b", "f1"] == 0.0
    assert found["macro", "precision"] == pytest.approx(1 / 9)


def test_no_known_row_at_all_is_undefined_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measures in (
            ExclusiveMeasures(EXCLUSIVE, np.zeros((2, 3)), np.full((2, 3), np.nan)),
            IndependentMeasures(INDEPENDENT, np.zeros((2, 2)), np.full((2, 2), np.nan), ()),
            MaskMeasures(np.full((2, 2), np.nan)),
        ):
            assert np.isnan(plain(measures, 2)).all()
            assert set(measures.rows) == {0}


# -- independent ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_counts_of_a_label_are_the_confusion_of_its_known_rows(seed):
    scores, targets = independent(seed)
    targets = np.where(np.random.default_rng(seed).random(targets.shape) < 0.2, np.nan, targets)
    cut = Threshold(head="findings", label="x", value=0.35, rule="youden")
    found = metrics.label_counts(INDEPENDENT, scores, targets, [cut])
    assert [item.label for item in found] == ["x", "y"]
    for place, (item, value) in enumerate(zip(found, (0.35, 0.5), strict=True)):
        known = ~np.isnan(targets[:, place])
        decided = scores[known, place].astype(float) >= value
        expected = oracle.confusion_matrix(targets[known, place] > 0, decided, labels=[False, True]).ravel().tolist()
        negatives = [item.true_negatives, item.false_positives]
        assert [*negatives, item.false_negatives, item.true_positives] == expected


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_independent_metrics_equal_sklearn(seed):
    scores, targets = independent(seed)
    cut = Threshold(head="findings", label="x", value=0.35, rule="youden")
    found = values_by_name(IndependentMeasures(INDEPENDENT, scores, targets, [cut]), len(scores))
    close = {}
    for place, (label, value) in enumerate((("x", 0.35), ("y", 0.5))):
        true, score = targets[:, place], scores[:, place].astype(float)
        decided = score >= value
        close |= {
            (label, "accuracy"): oracle.accuracy_score(true, decided),
            (label, "balanced_accuracy"): oracle.balanced_accuracy_score(true, decided),
            (label, "precision"): oracle.precision_score(true, decided, zero_division=0),
            (label, "recall"): oracle.recall_score(true, decided),
            (label, "specificity"): oracle.recall_score(1 - true, ~decided),
            (label, "f1"): oracle.f1_score(true, decided),
            (label, "auroc"): oracle.roc_auc_score(true, score),
            (label, "average_precision"): oracle.average_precision_score(true, score),
            (label, "brier"): oracle.brier_score_loss(true, score),
        }
        if decided.any():
            close[label, "kappa"] = oracle.cohen_kappa_score(true, decided)
    for metric in metrics.PER_LABEL:
        if not np.isnan([found["x", metric], found["y", metric]]).any():
            close["macro", metric] = np.mean([found["x", metric], found["y", metric]])
    assert {name: found[name] for name in close} == pytest.approx(close, abs=1e-6)


def test_label_calibration_error_equals_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(0)
    scores = rng.random((500, 2)).astype(np.float32)
    targets = (rng.random((500, 2)) < scores**2).astype(float)
    found = values_by_name(IndependentMeasures(INDEPENDENT, scores, targets, ()), 500)
    # torchmetrics' binary form compares the frequency of positives with the probability, as is done here.
    given_ = torch.from_numpy(scores[:, 0].copy()), torch.from_numpy(targets[:, 0]).int()
    expected = binary_calibration_error(*given_, n_bins=15)
    assert found["x", "ece"] == pytest.approx(float(expected), abs=1e-6)


def test_each_label_counts_its_own_known_rows():
    scores, targets = independent(1)
    targets[10:40, 0] = np.nan
    measures = IndependentMeasures(INDEPENDENT, scores, targets, ())
    known = ~np.isnan(targets[:, 0])
    found = values_by_name(measures, len(scores))
    assert dict(zip(measures.names, measures.rows, strict=True))["x", "auroc"] == 90
    assert found["x", "auroc"] == pytest.approx(oracle.roc_auc_score(targets[known, 0], scores[known, 0]))


# -- ranking under weights -----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(2, 60), st.integers(0, 3))
def test_weighted_ranking_equals_sklearn(seed, rows, digits):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(rows), digits)
    positive = rng.random(rows) < 0.4
    weights = rng.integers(0, 4, (rows, 5)).astype(float)
    auroc, average = Ranking(scores, positive)(weights)
    for column in range(5):
        weight = weights[:, column]
        if weight[positive].sum() == 0:
            assert np.isnan(auroc[column]) and np.isnan(average[column])
            continue
        assert average[column] == pytest.approx(
            oracle.average_precision_score(positive, scores, sample_weight=weight), abs=1e-12
        )
        if weight[~positive].sum() == 0:
            assert np.isnan(auroc[column])
        else:
            assert auroc[column] == pytest.approx(
                oracle.roc_auc_score(positive, scores, sample_weight=weight), abs=1e-12
            )


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_weight_is_a_row_repeated(seed):
    """The whole basis of the bootstrap: a weight of 3 is the row three times, a weight of 0 is its absence."""
    scores, targets = exclusive(seed, rows=30)
    labels, truths = independent(seed, rows=30)
    times = np.random.default_rng(seed).integers(0, 4, 30)
    again = np.repeat(np.arange(30), times)
    for whole, repeated in (
        (ExclusiveMeasures(EXCLUSIVE, scores, targets), ExclusiveMeasures(EXCLUSIVE, scores[again], targets[again])),
        (
            IndependentMeasures(INDEPENDENT, labels, truths, ()),
            IndependentMeasures(INDEPENDENT, labels[again], truths[again], ()),
        ),
        (MaskMeasures(labels), MaskMeasures(labels[again])),
    ):
        np.testing.assert_allclose(whole(times[:, None].astype(float))[:, 0], plain(repeated, len(again)), atol=1e-10)


# -- masks ---------------------------------------------------------------------------------------


def test_overlap_equals_monai_and_the_stated_rule_for_empty_masks():
    import torch
    from monai.metrics import compute_dice, compute_iou

    rng = np.random.default_rng(0)
    predicted, true = rng.random((2, 8, 24, 24)) < 0.4
    found = metrics.overlap(predicted, true)
    given_ = torch.from_numpy(predicted[:, None]).float(), torch.from_numpy(true[:, None]).float()
    np.testing.assert_allclose(found[:, 0], compute_dice(*given_).numpy()[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], compute_iou(*given_).numpy()[:, 0], atol=1e-6)
    nothing, something = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    assert metrics.overlap(nothing, nothing).tolist() == [[1.0, 1.0]]
    assert metrics.overlap(something, nothing).tolist() == [[0.0, 0.0]]
    assert metrics.overlap(nothing, something).tolist() == [[0.0, 0.0]]


def test_mask_metrics_are_means_over_images_with_a_mask():
    measures = MaskMeasures(np.array([[0.8, 0.6], [np.nan, np.nan], [0.4, 0.2]]))
    assert values_by_name(measures, 3) == pytest.approx({("macro", "dice"): 0.6, ("macro", "iou"): 0.4})
    assert measures.rows == (2, 2)


@given(SEEDS)
def test_dice_and_iou_say_the_same(seed):
    rng = np.random.default_rng(seed)
    dice, iou = metrics.overlap(rng.random((5, 6, 6)) < 0.3, rng.random((5, 6, 6)) < 0.5).T
    np.testing.assert_allclose(iou, dice / (2 - dice), atol=1e-6)


def test_predictions_without_a_head_are_refused():
    some = predictions(*independent(0))
    with pytest.raises(DataError, match="nothing for head 'lung'"):
        metrics.of_head(some, MASK)
    assert isinstance(metrics.of_head(some, INDEPENDENT), IndependentMeasures)

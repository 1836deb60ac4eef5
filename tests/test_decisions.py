"""Activation, decision and calibration: against torch and scipy, and by what must always hold."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scored import EXCLUSIVE, INDEPENDENT, MASK

from medflow import decisions
from medflow.decisions import Calibrator, calibrate, decide, probabilities, sigmoid, softmax
from medflow.errors import DataError
from medflow.records import OperatingPoint, Temperature, Threshold

LOGITS = hnp.arrays(np.float32, (7, 3), elements=st.floats(-80, 80, width=32))


@settings(deadline=None)  # the first example imports torch
@given(LOGITS)
def test_activations_equal_torch(values):
    import torch

    tensor = torch.from_numpy(values.copy())
    np.testing.assert_allclose(softmax(values), tensor.softmax(1).numpy(), atol=1e-6)
    np.testing.assert_allclose(sigmoid(values), tensor.sigmoid().numpy(), atol=1e-6)
    assert softmax(values).dtype == sigmoid(values).dtype == np.float32


def test_extreme_logits_neither_overflow_nor_warn():
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e30, 1e30], dtype=np.float32)).tolist() == [0.0, 1.0]
        assert softmax(np.array([[-1e30, 1e30]], dtype=np.float32)).tolist() == [[0.0, 1.0]]


def test_activations_leave_their_input_alone():
    values = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    softmax(values), sigmoid(values)
    assert values.tolist() == [[1.0, 2.0, 3.0]]


@given(LOGITS, st.floats(0.25, 10))
def test_temperature_never_changes_an_exclusive_decision(values, temperature):
    def decided(value: float) -> np.ndarray:
        scores = probabilities({"diagnosis": values}, [EXCLUSIVE], [Temperature(head="diagnosis", value=value)])
        return scores["diagnosis"]

    cold, warm = decided(1.0), decided(temperature)
    # Two logits closer than float32 can tell apart may tie after the division; nothing else may move.
    chosen = warm.argmax(axis=1)
    assert np.allclose(cold[np.arange(7), chosen], cold.max(axis=1), atol=1e-5)


def test_a_label_is_positive_at_its_threshold_and_not_below():
    below = np.nextafter(np.float32(0.3), np.float32(0))
    scores = {"findings": np.array([[0.3, 0.5], [below, 0.49]], dtype=np.float32)}
    cut = Threshold(head="findings", label="x", value=float(np.float32(0.3)), rule="youden")
    assert decide(scores, [INDEPENDENT], [cut])["findings"].tolist() == [[True, True], [False, False]]


def test_a_missing_head_a_wrong_shape_and_nan_are_refused():
    with pytest.raises(DataError, match="nothing for head 'diagnosis'; there is findings"):
        probabilities({"findings": np.zeros((1, 2))}, [EXCLUSIVE], [])
    with pytest.raises(DataError, match=r"shape \(1, 2\), expected \(n, 3\)"):
        probabilities({"diagnosis": np.zeros((1, 2))}, [EXCLUSIVE], [])
    with pytest.raises(DataError, match="not all finite"):
        probabilities({"diagnosis": np.array([[0, np.nan, 1]])}, [EXCLUSIVE], [])
    with pytest.raises(DataError, match="2 rows of logits and 1 of truth"):
        calibrate({"diagnosis": np.zeros((2, 3))}, {"diagnosis": np.zeros((1, 3))}, [EXCLUSIVE])


# -- temperature ---------------------------------------------------------------------------------


def exclusive_rows(temperature: float, rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``temperature`` times too large, and classes drawn from the right probabilities."""
    rng = np.random.default_rng(seed)
    right = rng.normal(scale=1.5, size=(rows, 3))
    classes = (right + rng.gumbel(size=right.shape)).argmax(axis=1)
    return right * temperature, np.eye(3)[classes]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_planted_is_found(temperature):
    logits, targets = exclusive_rows(temperature)
    fitted = calibrate({"diagnosis": logits}, {"diagnosis": targets}, [EXCLUSIVE])
    assert fitted.temperatures[0].value == pytest.approx(temperature, rel=0.08)


def test_the_temperature_is_scipys_optimum():
    from scipy.optimize import minimize_scalar

    rng = np.random.default_rng(1)
    logits = rng.normal(scale=4, size=(300, 2)).astype(np.float32)
    targets = (rng.random((300, 2)) < sigmoid(logits / 2.3)).astype(float)
    signed = np.where(targets > 0, logits, -logits).astype(np.float64)
    best = minimize_scalar(lambda log: np.logaddexp(0, -signed * np.exp(-log)).sum(), bounds=(-1.3, 2.3))
    fitted = calibrate({"findings": logits}, {"findings": targets}, [INDEPENDENT])
    assert fitted.temperatures[0].value == pytest.approx(np.exp(best.x), rel=1e-4)


def test_unknown_labels_do_not_count():
    logits, targets = exclusive_rows(2.0, rows=500)
    noise = np.random.default_rng(5).normal(size=(200, 3)) * 9
    unknown = np.concatenate([np.full((100, 3), np.nan), np.tile([0, 1, np.nan], (100, 1))])
    padded = np.concatenate([targets, unknown])
    alone = calibrate({"diagnosis": logits}, {"diagnosis": targets}, [EXCLUSIVE])
    beside = calibrate({"diagnosis": np.concatenate([logits, noise])}, {"diagnosis": padded}, [EXCLUSIVE])
    assert alone == beside


def test_a_set_without_errors_or_without_labels_stays_within_bounds():
    logits = np.eye(3) * 5
    perfect = calibrate({"diagnosis": logits}, {"diagnosis": np.eye(3)}, [EXCLUSIVE])
    assert perfect.temperatures[0].value == pytest.approx(decisions.TEMPERATURE_MIN)
    inverted = calibrate({"diagnosis": -logits}, {"diagnosis": np.eye(3)}, [EXCLUSIVE])
    assert inverted.temperatures[0].value == pytest.approx(decisions.TEMPERATURE_MAX)
    unknown = calibrate({"diagnosis": logits}, {"diagnosis": np.full((3, 3), np.nan)}, [EXCLUSIVE])
    assert unknown.temperatures[0].value == 1.0


# -- thresholds ----------------------------------------------------------------------------------


def test_exclusive_thresholds_are_recorded_as_argmax():
    logits, targets = exclusive_rows(1.0, rows=20)
    fitted = calibrate({"diagnosis": logits}, {"diagnosis": targets}, [EXCLUSIVE])
    assert {(cut.label, cut.rule, round(cut.value, 4)) for cut in fitted.thresholds} == {
        (label, "argmax", 0.3333) for label in "abc"
    }


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(6, 60))
def test_no_threshold_has_a_larger_youden_index(seed, rows):
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(rows, 2)), 1).astype(np.float32)
    targets = (rng.random((rows, 2)) < sigmoid(logits)).astype(float)
    fitted = calibrate({"findings": logits}, {"findings": targets}, [INDEPENDENT])
    scores = probabilities({"findings": logits}, [INDEPENDENT], fitted.temperatures)["findings"]
    decided = decide({"findings": scores}, [INDEPENDENT], fitted.thresholds)["findings"]
    for place, cut in enumerate(fitted.thresholds):
        true = targets[:, place] > 0
        if true.all() or not true.any():
            assert (cut.rule, cut.value) == ("default", 0.5)
            continue
        best = max(youden(scores[:, place] >= value, true) for value in scores[:, place])
        if cut.rule == "default":
            assert best <= 1e-9
        else:
            assert youden(decided[:, place], true) == pytest.approx(best)


def youden(decided: np.ndarray, true: np.ndarray) -> float:
    return float(decided[true].mean() - decided[~true].mean())


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(20, 80), st.sampled_from([0.5, 0.8, 0.9]))
def test_a_sensitivity_is_reached_by_the_highest_threshold_that_does(seed, rows, at):
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(rows, 2)), 1).astype(np.float32)
    targets = (rng.random((rows, 2)) < [0.5, 0.2]).astype(float)
    targets[rng.random((rows, 2)) < 0.1] = np.nan
    point = OperatingPoint(rule="sensitivity", at=at)
    fitted = calibrate({"findings": logits}, {"findings": targets}, [INDEPENDENT], operating_point=point)
    youdens = calibrate({"findings": logits}, {"findings": targets}, [INDEPENDENT])
    assert fitted.temperatures == youdens.temperatures
    scores = probabilities({"findings": logits}, [INDEPENDENT], fitted.temperatures)["findings"]
    decided = decide({"findings": scores}, [INDEPENDENT], fitted.thresholds)["findings"]
    for place, cut in enumerate(fitted.thresholds):
        positive, known = targets[:, place] == 1, ~np.isnan(targets[:, place])
        if positive.sum() < 10:
            assert cut.value == youdens.thresholds[place].value
            told = f"({positive.sum()} positives, sensitivity {at:g} needs 10)"
            assert cut.rule == f"{youdens.thresholds[place].rule} {told}"
            continue
        assert cut.rule == f"sensitivity {at:g}"
        assert decided[positive, place].mean() >= at - 1e-9
        lowest = scores[decided[:, place] & known, place].min()
        assert (scores[positive, place] > lowest).mean() < at - 1e-9, "a higher threshold would reach it too"


def test_a_sensitivity_near_1_needs_more_positives():
    logits = np.linspace(-3, 3, 40, dtype=np.float32)[:, None].repeat(2, axis=1)
    targets = (logits > 0).astype(float)
    point = OperatingPoint(rule="sensitivity", at=0.98)
    fitted = calibrate({"findings": logits}, {"findings": targets}, [INDEPENDENT], operating_point=point)
    assert fitted.thresholds[0].rule == "youden (20 positives, sensitivity 0.98 needs 50)"


def mask_rows(images: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose best cut is at +2: pixels of the mask lie above it, the others below."""
    rng = np.random.default_rng(seed)
    masks = (rng.random((images, 16, 16)) < 0.3).astype(np.uint8)
    logits = np.where(masks > 0, rng.uniform(2.05, 5, masks.shape), rng.uniform(-5, 1.95, masks.shape))
    return logits[:, None].astype(np.float32), masks


def test_the_mask_threshold_has_the_best_dice():
    logits, masks = mask_rows()
    fitted = calibrate({"lung": logits}, {}, [MASK], {"lung": masks})
    scores = probabilities({"lung": logits}, [MASK], fitted.temperatures)
    decided = decide(scores, [MASK], fitted.thresholds)["lung"]
    assert decided.shape == logits.shape and decided.dtype == bool
    assert np.array_equal(decided[:, 0], masks > 0)
    assert fitted.thresholds[0].rule == "dice"


def test_a_pixel_on_the_cut_is_in_the_mask_whatever_the_temperature():
    for seed in range(20):
        _, masks = mask_rows(seed=seed)
        # Pixels outside reach up to just below the cut at 2, so that no lower cut is as good.
        outside = np.random.default_rng(seed).uniform(-seed, 1.99, masks.shape)
        logits = np.where(masks > 0, 2.0, outside)[:, None].astype(np.float32)
        fitted = calibrate({"lung": logits}, {}, [MASK], {"lung": masks})
        scores = probabilities({"lung": logits}, [MASK], fitted.temperatures)
        assert decide(scores, [MASK], fitted.thresholds)["lung"][masks[:, None] > 0].all()


def test_images_without_a_mask_do_not_count():
    logits, masks = mask_rows()
    has_mask = np.array([True, True, False, True, False, True])
    wrong = np.where(has_mask[:, None, None], masks, 1 - masks)
    fitted = calibrate({"lung": logits}, {}, [MASK], {"lung": wrong}, has_mask)
    assert fitted == calibrate({"lung": logits[has_mask]}, {}, [MASK], {"lung": masks[has_mask]})
    nothing = calibrate({"lung": logits}, {}, [MASK], {"lung": masks}, np.zeros(6, dtype=bool))
    assert [(cut.rule, cut.value) for cut in nothing.thresholds] == [("default", 0.5)]


def test_batches_of_any_size_give_the_same_calibration():
    logits, masks = mask_rows(7)
    labels, targets = exclusive_rows(2.0, rows=7)
    heads = (EXCLUSIVE, MASK)
    whole = calibrate({"diagnosis": labels, "lung": logits}, {"diagnosis": targets}, heads, {"lung": masks})
    for size in (1, 3, 7):
        calibrator = Calibrator(heads)
        for start in range(0, 7, size):
            part = slice(start, start + size)
            calibrator.add(
                {"diagnosis": labels[part], "lung": logits[part]}, {"diagnosis": targets[part]}, {"lung": masks[part]}
            )
        assert calibrator.fit() == whole


def test_large_masks_are_calibrated_in_little_memory(tmp_path):
    shape = (60, 1, 128, 128)
    logits = np.lib.format.open_memmap(tmp_path / "logits.npy", mode="w+", dtype=np.float32, shape=shape)
    logits[:] = np.random.default_rng(0).normal(size=(1, *shape[1:]))
    masks = np.lib.format.open_memmap(tmp_path / "masks.npy", mode="w+", dtype=np.uint8, shape=(60, 128, 128))
    tracemalloc.start()
    calibrate({"lung": logits}, {}, [MASK], {"lung": masks})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6 < logits.nbytes


def test_serving_reads_neither_torch_nor_sklearn():
    heavy = "('torch', 'sklearn', 'scipy', 'pandas', 'pyarrow')"
    code = f"import sys, medflow.decisions; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

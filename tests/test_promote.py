"""Promotion: what may take a stage, what may not, and that every refusal says why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scored
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import INDEPENDENT

from medflow import evaluate as evaluating
from medflow import promote as promoting
from medflow.config.reading import load
from medflow.config.sections import EvaluateConfig, Floor, PromoteConfig
from medflow.errors import ConfigError, DataError
from medflow.promote import check_floors, check_metrics, promote, with_learnt_floors
from medflow.records import Challenge, Evaluation, HeadSpec, PackageFacts, Predictions

EMPTY = Challenge(stage="production")
HELD = Challenge(stage="production", model_version="4", package_digest="old")
QUICK = PromoteConfig(resamples=300, margin=0.03)
HEAD = HeadSpec(kind="independent", name="findings", labels=("x",))


def package(digest: str = "new") -> PackageFacts:
    return PackageFacts(
        tag="tiny:new", file="tiny.bento", content_digest=digest, bundle_digest="b", bytes=1, bento_sha256=""
    )


def said(skill: float, *, rows: int = 300, seed: int = 0, bundle: str = "candidate") -> Predictions:
    """Scores that part positives and negatives the better the larger ``skill``; the truth depends on ``rows`` alone."""
    targets = (np.random.default_rng([7, rows]).random((rows, 1)) < 0.4).astype(float)
    noise = np.random.default_rng([seed, rows]).normal(size=(rows, 1))
    scores = 1 / (1 + np.exp(-(noise + skill * targets)))
    groups = [f"patient{row // 2}" for row in range(rows)]
    return scored.predictions(scores, targets, HEAD, groups=groups, bundle=bundle)


def evaluated(predictions: Predictions, *, resamples: int = 200) -> Evaluation:
    return Evaluation(
        bundle_digest=predictions.bundle_digest,
        rows_digest=predictions.rows_digest,
        model="tiny/net",
        variant="onnx",
        role="test",
        scores=evaluating.scores(predictions, EvaluateConfig(resamples=resamples)),
    )


def decided(new: Predictions, old: Predictions | None, challenge: Challenge = HELD, config: PromoteConfig = QUICK):
    incumbent = evaluated(old) if old is not None else None
    left = old if old is not None and len(old) < len(new) else new
    return promote(evaluated(new), new, incumbent, old, package(), challenge, config, scored.unseen(new, left))


# -- without an incumbent ------------------------------------------------------------------------


def test_a_floor_that_no_learnt_head_has_is_refused_before_a_run():
    label = HeadSpec(kind="exclusive", name="diagnosis", labels=("a", "b"))
    mask = HeadSpec(kind="mask", name="lungs", labels=("lungs",))
    floors = (Floor(metric="auroc", value=0.7), Floor(metric="dice", value=0.75))
    config = PromoteConfig(floors=floors)
    check_floors(config, [label, mask])
    with pytest.raises(ConfigError, match="dice of these heads") as caught:
        check_floors(config, [label])
    assert "promote.floors=[{metric: auroc, value: 0.7}]" in str(caught.value.hint)
    for floor in (Floor(metric="auroc", value=0.7, head="lungs"), Floor(metric="aurox", value=0.7)):
        with pytest.raises(ConfigError):
            check_floors(PromoteConfig(floors=(floor,)), [label, mask])


def test_floors_of_heads_that_were_left_out_on_request_are_dropped_and_named(capsys):
    label = HeadSpec(kind="exclusive", name="diagnosis", labels=("a", "b"))
    mask = HeadSpec(kind="mask", name="lungs", labels=("lungs",))
    floors = (Floor(metric="auroc", value=0.7), Floor(metric="dice", value=0.75), Floor(metric="auroc", value=0.8))
    config = PromoteConfig(floors=floors)
    assert with_learnt_floors(config, [label]).floors == (floors[0], floors[2])
    told = capsys.readouterr().err
    assert told.count("promote.floors") == 1 and "dice 0.75 not asked for, since heads=[diagnosis]" in told
    assert with_learnt_floors(config, [label, mask]) == config
    assert not capsys.readouterr().err


def test_settings_that_judge_by_no_metric_are_refused_before_a_run():
    for section in ("select", "choose", "promote"):
        with pytest.raises(ConfigError, match=f"{section}.metric: expected a metric, found 'f2'"):
            check_metrics(load("phantom", [f"{section}.metric=f2"]))
    check_metrics(load("phantom"))


def test_an_empty_stage_is_taken_when_the_floors_hold():
    config = QUICK.model_copy(update={"floors": (Floor(metric="auroc", value=0.7),)})
    result = decided(said(2.0), None, EMPTY, config)
    assert result.promoted and result.incumbent is None and result.candidate == "new"
    assert result.reasons[0] == "promoted to production"
    assert any("nothing holds production" in reason for reason in result.reasons)
    assert any("reaches the floor 0.7 (300 images)" in reason for reason in result.reasons)


def test_the_lower_end_must_reach_the_floor_not_the_value():
    new = said(1.0)
    score = evaluated(new).score("auroc")
    between = (score.low + score.value) / 2
    config = QUICK.model_copy(update={"floors": (Floor(metric="auroc", value=between),)})
    result = decided(new, None, EMPTY, config)
    assert score.value > between and not result.promoted
    assert f"the lower end {score.low:.4f} of its 95% interval does not reach the floor" in result.reasons[1]


def test_where_smaller_is_better_the_floor_is_a_ceiling():
    new = said(2.0)
    high = evaluated(new).score("brier").high
    for ceiling, promoted in ((high + 0.01, True), (high - 0.01, False)):
        config = QUICK.model_copy(update={"floors": (Floor(metric="brier", value=ceiling),)})
        result = decided(new, None, EMPTY, config)
        assert result.promoted is promoted
        assert any("ceiling" in reason for reason in result.reasons)


def test_an_undefined_floor_is_not_reached():
    new = scored.predictions(np.full((20, 1), 0.4), np.zeros((20, 1)), HEAD)
    config = QUICK.model_copy(update={"floors": (Floor(metric="auroc", value=0.1),)})
    result = decided(new, None, EMPTY, config)
    assert not result.promoted and "has no interval on 20 images" in result.reasons[1]


# -- with an incumbent ---------------------------------------------------------------------------


def test_identical_content_promotes_nothing_however_good():
    new = said(5.0)
    result = promote(evaluated(new), new, None, None, package("old"), HELD, QUICK, None)
    assert not result.promoted
    assert "identical content" in result.reasons[1]


def test_a_better_candidate_is_promoted_with_its_figures():
    result = decided(said(3.0), said(0.5, seed=1, bundle="incumbent"))
    assert result.promoted
    (comparison,) = result.comparisons
    assert comparison.difference == pytest.approx(comparison.candidate - comparison.incumbent)
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert (comparison.metric, comparison.label, comparison.n, comparison.groups) == ("auroc", "macro", 300, 150)
    assert "not inferior" in result.reasons[1] and f"{comparison.candidate:.4f}" in result.reasons[1]


def test_slightly_worse_within_the_margin_is_not_inferior():
    old = said(3.0, rows=2000, bundle="incumbent")
    worse = np.clip(old.probabilities["findings"] + np.random.default_rng(0).normal(0, 0.04, (2000, 1)), 0, 1)
    new = scored.predictions(worse, old.targets["findings"], HEAD, groups=old.group)
    result = decided(new, old)
    assert -QUICK.margin < result.comparisons[0].difference < 0
    assert result.promoted


def test_a_better_value_without_evidence_is_not_enough():
    """What ``new >= old`` would wave through: a few images, a larger number, an interval that allows a large loss."""
    for seed in range(40):
        new, old = said(1.2, rows=24, seed=seed), said(1.0, rows=24, seed=seed + 100, bundle="incumbent")
        result = decided(new, old)
        if result.comparisons[0].difference > 0 and not result.promoted:
            assert "it is not shown that the candidate is no worse" in result.reasons[1]
            return
    pytest.fail("no such case in 40 draws: the comparison is too lenient")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0, 3), st.integers(10, 120), st.floats(0, 0.2))
def test_a_candidate_worse_than_the_margin_is_never_promoted(seed, skill, other, rows, margin):
    new, old = said(skill, rows=rows, seed=seed), said(other, rows=rows, seed=seed + 1, bundle="incumbent")
    config = PromoteConfig(resamples=100, margin=margin)
    result = decided(new, old, HELD, config)
    lost = evaluated(old).score("auroc").value - evaluated(new).score("auroc").value
    if math.isnan(lost) or lost >= margin:
        assert not result.promoted
    if result.promoted:
        assert result.comparisons[0].low > -margin


def test_a_truly_inferior_candidate_is_promoted_about_as_seldom_as_the_interval_says():
    """Its true loss is the margin itself, so each promotion is an error; 2.5 % are claimed."""
    wrong = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        true = (rng.random((150, 1)) < 0.5).astype(float)
        strong, weak = (rng.normal(size=(150, 1)) + skill * true for skill in (1.8, 1.1))
        old = scored.predictions(1 / (1 + np.exp(-strong)), true, HEAD, bundle="incumbent")
        new = scored.predictions(1 / (1 + np.exp(-weak)), true, HEAD)
        # AUROC of two unit normals d apart is Phi(d / sqrt 2): 0.898 and 0.782.
        config = PromoteConfig(resamples=200, margin=0.1167)
        wrong += promoting.holds(promoting.compare(new, old, config)[0])
    assert wrong <= 10  # of 120; more than 10 at 2.5 % happens less than once in 1000 runs


def test_the_same_inputs_give_the_same_promotion():
    new, old = said(1.5), said(1.4, seed=1, bundle="incumbent")
    assert decided(new, old).digest() == decided(new, old).digest()


# -- what cannot be compared ---------------------------------------------------------------------


def test_an_incumbent_that_could_not_be_evaluated_keeps_its_stage():
    result = decided(said(5.0), None, HELD)
    assert not result.promoted
    assert "held by 4, which could not be evaluated" in result.reasons[1]


def part_of(predictions: Predictions, rows: list[int], digest: str = "part") -> Predictions:
    arrays = {"image_id": predictions.image_id[rows], "group": predictions.group[rows], "rows_digest": digest}
    for name in ("probabilities", "targets"):
        arrays[name] = {head: values[rows] for head, values in getattr(predictions, name).items()}
    return Predictions(**{**vars(predictions), **arrays})


def test_the_two_are_compared_on_the_rows_that_the_incumbent_never_saw():
    """On the rest it is perfect, since it learnt them: that must not count."""
    new, fair = said(2.0), said(0.5, seed=1, bundle="incumbent")
    learnt = Predictions(**{**vars(fair), "probabilities": fair.targets})
    rows = list(range(100, 200))
    old = part_of(learnt, rows)
    old = Predictions(**{**vars(old), "probabilities": part_of(fair, rows).probabilities})
    assert not decided(new, learnt).promoted
    result = decided(new, old)
    assert result.promoted
    (comparison,) = result.comparisons
    assert (comparison.n, comparison.groups) == (100, 50)
    assert comparison.candidate == pytest.approx(evaluated(part_of(new, rows)).score("auroc").value)
    assert any("compared on 100 of the 300 test images (50 of 150 groups)" in reason for reason in result.reasons)
    assert result.unseen and result.unseen.images == 100


def test_too_few_unseen_groups_or_an_unknown_past_refuse_whatever_the_figures():
    new, fair = said(5.0), said(0.1, bundle="incumbent")
    few = part_of(fair, list(range(30)))
    result = decided(new, few)
    assert not result.promoted and result.comparisons == ()
    assert "learnt from 270 of the 300 test images" in result.reasons[1]
    assert "in 15 groups, fewer than promote.unseen_groups=20" in result.reasons[1]
    assert decided(new, few, HELD, QUICK.model_copy(update={"unseen_groups": 15})).promoted
    blank = scored.unseen(new).model_copy(update={"unknown": "the train of tiny@4 was deleted"})
    for unseen, why in ((blank, "the train of tiny@4 was deleted"), (None, "nothing was said of it")):
        result = promote(evaluated(new), new, evaluated(fair), fair, package(), HELD, QUICK, unseen)
        assert not result.promoted and f"is not known ({why})" in result.reasons[1] and result.comparisons == ()


def test_all_rows_unseen_is_said_too():
    assert any("learnt from none of the 300 test images" in reason for reason in decided(said(2.0), said(1.0)).reasons)


def test_weights_from_a_file_are_said_to_have_an_unknown_past_on_either_side():
    new, old = said(2.0), said(1.0)
    ours, theirs = (evaluated(one).model_copy(update={"starts": ("mine.safetensors",)}) for one in (new, old))
    for candidate, incumbent, who in ((ours, evaluated(old), "candidate"), (evaluated(new), theirs, "incumbent")):
        result = promote(candidate, new, incumbent, old, package(), HELD, QUICK, scored.unseen(new))
        assert result.promoted
        (told,) = [reason for reason in result.reasons if "mine.safetensors" in reason]
        assert told.startswith(f"the {who} started from") and "is not known" in told
    assert not any("started from" in reason for reason in decided(new, old).reasons)


def test_an_incumbent_that_nobody_recorded_is_no_reason_to_promote():
    result = decided(said(5.0), said(0.1, bundle="incumbent"), EMPTY)
    assert not result.promoted and "nothing is recorded as holding production" in result.reasons[1]


def test_other_rows_other_images_or_another_order_are_refused():
    new = said(5.0)
    other = said(0.1, bundle="incumbent")
    reversed_ = scored.predictions(
        other.probabilities["findings"][::-1], other.targets["findings"][::-1], HEAD, bundle="incumbent"
    )
    turned = Predictions(**{**vars(reversed_), "image_id": other.image_id[::-1], "group": other.group[::-1]})
    foreign = Predictions(**{**vars(other), "rows_digest": "elsewhere"})
    for old, why in ((foreign, "different rows"), (turned, "same images in the same order")):
        result = decided(new, old)
        assert not result.promoted and why in result.reasons[1] and result.comparisons == ()


def test_a_candidate_that_lacks_a_head_is_refused():
    both = np.hstack([said(1.0).probabilities["findings"]] * 2), np.hstack([said(1.0).targets["findings"]] * 2)
    old = scored.predictions(*both, INDEPENDENT, groups=said(1.0).group, bundle="incumbent")
    result = decided(said(5.0), old)
    assert not result.promoted and "defines it otherwise: findings" in result.reasons[1]


def test_evaluations_of_other_bundles_or_rows_are_an_error():
    new = said(1.0)
    with pytest.raises(DataError, match="different bundles or rows"):
        promote(evaluated(said(1.0, bundle="another")), new, None, None, package(), EMPTY, QUICK, None)
    validation = evaluated(new).model_copy(update={"role": "val"})
    with pytest.raises(DataError, match="decided on test rows"):
        promote(validation, new, None, None, package(), EMPTY, QUICK, None)


def test_masks_are_compared_by_dice():
    scores = np.random.default_rng(0).uniform(0.7, 0.9, (60, 2))

    def mask_predictions(values: np.ndarray, bundle: str) -> Predictions:
        made = scored.predictions(np.zeros((60, 1)), np.zeros((60, 1)), HEAD, bundle=bundle)
        only_mask = {"heads": (scored.MASK,), "probabilities": {}, "targets": {}, "mask_scores": {"lung": values}}
        return Predictions(**{**vars(made), **only_mask})

    old = mask_predictions(scores, "incumbent")
    for change, promoted in ((-0.01, True), (-0.05, False)):
        result = decided(mask_predictions(scores + change, "candidate"), old)
        assert result.promoted is promoted
        assert result.comparisons[0].metric == "dice"
        assert result.comparisons[0].difference == pytest.approx(change, abs=1e-6)

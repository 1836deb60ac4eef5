"""Which model, and which variant: from validation rows alone, with reasons in figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import evaluation

from medflow.choose import choose, chosen_bundle, select
from medflow.config.sections import ChooseConfig, SelectConfig
from medflow.errors import ConfigError, DataError
from medflow.records import Choice

SELECT = SelectConfig()
CHOOSE = ChooseConfig(margin=0.01, mask_margin=0.02)
REFERENCE = evaluation(variant="onnx", auroc=0.90, dice=0.80, latency_ms=10.0, bytes=4000)


def int8(**changes) -> object:
    return evaluation(**{"variant": "int8", "auroc": 0.895, "dice": 0.79, "latency_ms": 5.0, "bytes": 1000} | changes)


def reason(choice: Choice, variant: str) -> str:
    return next(item.reason for item in choice.verdicts if item.variant == variant)


# -- select --------------------------------------------------------------------------------------


def test_the_best_model_is_selected_and_the_others_told_by_how_much():
    choice = select([evaluation(model="tiny/a", auroc=0.81), evaluation(model="tiny/b", auroc=0.84)], SELECT)
    assert choice.chosen == "tiny/b"
    assert reason(choice, "tiny/b") == "best auroc on 100 validation images: 0.8400 (0.8200 to 0.8600)"
    assert reason(choice, "tiny/a") == "auroc 0.8100 (0.7900 to 0.8300), 0.0300 worse than tiny/b"
    assert [item.loss for item in choice.verdicts] == [0.03, 0.0]


def test_equals_are_parted_by_size_then_name():
    big, small = evaluation(model="tiny/a", auroc=0.8, bytes=9), evaluation(model="tiny/b", auroc=0.8, bytes=5)
    assert select([big, small], SELECT).chosen == "tiny/b"
    twin = evaluation(model="tiny/a", auroc=0.8, bytes=5)
    assert select([small, twin], SELECT).chosen == "tiny/a"


def test_smaller_is_better_where_the_metric_says_so():
    rivals = [evaluation(model="tiny/a", brier=0.2), evaluation(model="tiny/b", brier=0.1)]
    assert select(rivals, SelectConfig(metric="brier")).chosen == "tiny/b"


def test_models_without_labels_are_ranked_by_dice():
    def mask_only(model: str, dice: float):
        made = evaluation(model=model, dice=dice)
        return made.model_copy(update={"scores": tuple(item for item in made.scores if item.metric == "dice")})

    assert select([mask_only("tiny/a", 0.7), mask_only("tiny/b", 0.8)], SELECT).chosen == "tiny/b"


def test_undefined_never_wins_and_nothing_but_undefined_is_refused():
    undefined = evaluation(model="tiny/a", auroc=math.nan)
    assert select([undefined, evaluation(model="tiny/b", auroc=0.4)], SELECT).chosen == "tiny/b"
    with pytest.raises(DataError, match="auroc is undefined for every model"):
        select([undefined], SELECT)


def test_choices_are_made_on_the_same_validation_rows():
    with pytest.raises(DataError, match="on validation rows, these evaluations are on test"):
        select([evaluation(auroc=0.9, role="test")], SELECT)
    with pytest.raises(DataError, match="not over the same validation rows"):
        select([evaluation(model="a", auroc=0.9), evaluation(model="b", auroc=0.9, rows="other")], SELECT)
    with pytest.raises(DataError, match="two evaluations are of model 'tiny/net'"):
        select([evaluation(auroc=0.9), evaluation(auroc=0.8)], SELECT)
    with pytest.raises(DataError, match="nothing to choose from"):
        select([], SELECT)
    with pytest.raises(DataError, match="choices are made on validation rows"):
        choose(REFERENCE, [int8(role="test")], CHOOSE)


# -- choose --------------------------------------------------------------------------------------


def test_a_faster_variant_within_the_margins_is_chosen():
    choice = choose(REFERENCE, [int8()], CHOOSE)
    assert choice.chosen == "int8"
    assert reason(choice, "int8") == (
        "fastest accepted: auroc 0.8950 (loses 0.0050, margin 0.01), dice 0.7900 (loses 0.0100, margin 0.02); "
        "5.00 ms an image, 0.00 MB"
    )
    assert reason(choice, "onnx").startswith("the reference; int8 is accepted")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"auroc": 0.889}, r"loses 0.0110 of auroc (0.9000 to 0.8890), more than the margin 0.01"),
        ({"dice": 0.779}, r"loses 0.0210 of dice (0.8000 to 0.7790), more than the margin 0.02"),
        ({"latency_ms": 10.5}, "slower than onnx: 10.50 ms against 10.00 ms"),
        ({"latency_ms": None}, "its latency, or that of onnx, was not measured"),
        ({"auroc": math.nan}, "auroc is undefined"),
    ],
)
def test_a_variant_that_loses_too_much_or_is_slower_is_reported_and_not_chosen(changes, why):
    choice = choose(REFERENCE, [int8(**changes)], CHOOSE)
    assert choice.chosen == "onnx"
    assert why in reason(choice, "int8")
    assert [item.chosen for item in choice.verdicts] == [True, False]


def test_a_loss_of_exactly_the_margin_is_allowed():
    assert choose(REFERENCE, [int8(auroc=0.89, dice=0.78)], CHOOSE).chosen == "int8"


def test_of_equally_fast_variants_the_smaller_is_chosen():
    pruned = evaluation(variant="pruned_onnx", auroc=0.9, dice=0.8, latency_ms=5.0, bytes=900)
    assert choose(REFERENCE, [int8(), pruned], CHOOSE).chosen == "pruned_onnx"


def test_without_variants_the_reference_stays():
    assert choose(REFERENCE, [], CHOOSE).chosen == "onnx"


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match=r"choose\.metric is 'acuracy'"):
        choose(REFERENCE, [int8()], ChooseConfig(metric="acuracy"))


FIGURES = st.tuples(
    st.floats(0, 1), st.floats(0, 1), st.one_of(st.none(), st.floats(0.1, 20)), st.integers(1, 10_000)
)  # fmt: skip


@given(st.lists(FIGURES, max_size=3))
def test_what_is_chosen_never_breaks_a_rule(figures):
    names = ("int8", "pruned_onnx", "pruned_int8")
    variants = [
        evaluation(variant=name, auroc=auroc, dice=dice, latency_ms=latency, bytes=size)
        for name, (auroc, dice, latency, size) in zip(names, figures, strict=False)
    ]
    choice = choose(REFERENCE, variants, CHOOSE)
    by_name = {item.variant: item for item in (REFERENCE, *variants)}
    taken = by_name[choice.chosen]
    assert taken.score("auroc").value >= 0.90 - 0.01 - 1e-9
    assert taken.score("dice").value >= 0.80 - 0.02 - 1e-9
    assert taken.latency_ms is not None and taken.latency_ms <= 10.0
    assert [item.variant for item in choice.verdicts if item.chosen] == [choice.chosen]
    assert all(item.reason for item in choice.verdicts)


def test_the_chosen_bundle_is_found_by_model_or_variant(tmp_path):
    import handmade

    made = handmade.bundle(tmp_path / "bundle")
    for name in ("handmade/threshold", "onnx"):
        assert chosen_bundle([made], Choice(chosen=name, verdicts=())) is made
    with pytest.raises(DataError, match=r"int8 was chosen and is not among handmade/threshold \(onnx\)"):
        chosen_bundle([made], Choice(chosen="int8", verdicts=()))

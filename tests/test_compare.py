"""Comparing models: the order, the paired interval, ties, and what may not be ranked together."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scored import INDEPENDENT, predictions

from medflow import cli, paired
from medflow.compare import Contender, Wanted, numbered, rank
from medflow.config.sections import EvaluateConfig
from medflow.errors import ConfigError, DataError
from medflow.evaluate import scores
from medflow.platform import comparing
from medflow.records import Evaluation, Predictions, Ranking
from medflow.report.ranking import forest, ranking_page

AUROC = Wanted(metric="auroc", resamples=200)


def said(skill: float, *, rows: int = 240, seed: int = 0, digest: str = "rows", flipped: int = 0) -> Predictions:
    """Two labels; the higher the skill, the better the scores rank them. One seed is one set of hard images."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, 2)) < 0.5).astype(float)
    noise = rng.normal(size=(rows, 2))
    noise[:flipped] *= -1
    chance = 1 / (1 + np.exp(-(skill * (2 * targets - 1) + noise)))
    return predictions(chance, targets, INDEPENDENT, rows=digest, bundle=f"{skill}")


def contender(name: str, predicted: Predictions, role: str = "val") -> Contender:
    measured = Evaluation(
        bundle_digest=predicted.bundle_digest, rows_digest=predicted.rows_digest, model=name, variant="torch",
        role=role, scores=scores(predicted, EvaluateConfig(resamples=200)),
    )  # fmt: skip
    return Contender(name, "run", measured, lambda: predicted)


def test_models_stand_in_order_with_their_paired_difference_to_the_best():
    ranking = rank(
        "d", [contender("weak", said(0.2)), contender("good", said(2.0)), contender("fair", said(1.0))], AUROC
    )
    assert [item.name for item in ranking.ranked] == ["good", "fair", "weak"]
    assert [item.verdict for item in ranking.ranked] == ["best", "worse", "worse"]
    for item in ranking.ranked[1:]:
        assert item.difference == pytest.approx(item.value - ranking.ranked[0].value)
        assert item.difference_low <= item.difference <= item.difference_high < 0
    assert ranking.winner() == "best is good, better than each of the others"
    assert Ranking.model_validate_json(ranking.model_dump_json()) == ranking


def test_a_difference_whose_interval_covers_nought_is_a_tie():
    ranking = rank("d", [contender("one", said(1.0)), contender("two", said(1.0, flipped=40))], AUROC)
    second = ranking.ranked[1]
    assert second.verdict == "tie"
    assert second.difference_low < 0 <= second.difference_high
    assert ranking.winner() == f"best is {ranking.ranked[0].name}, and not shown to be better than {second.name}"


def test_the_paired_interval_sees_what_two_intervals_would_hide():
    ranking = rank("d", [contender("better", said(1.3, rows=120)), contender("worse", said(1.0, rows=120))], AUROC)
    first, second = ranking.ranked
    assert first.low < second.high, "the intervals overlap"
    assert second.verdict == "worse"


def test_where_smaller_is_better_the_smallest_is_best():
    ranking = rank("d", [contender("weak", said(0.2)), contender("good", said(2.0))], Wanted("brier", resamples=200))
    assert [item.name for item in ranking.ranked] == ["good", "weak"]
    assert ranking.ranked[0].value < ranking.ranked[1].value
    assert ranking.ranked[1].difference < 0, "negative is worse, whatever the metric"


def test_one_label_and_the_macro_value_are_two_questions():
    both = [contender("a", said(1.0)), contender("b", said(0.3))]
    macro, label = rank("d", both, AUROC), rank("d", both, Wanted("auroc", label="x", resamples=200))
    assert (macro.label, label.label) == ("macro", "x")
    assert macro.ranked[0].value != label.ranked[0].value
    assert label.ranked[1].difference == pytest.approx(label.ranked[1].value - label.ranked[0].value)


def test_other_rows_are_listed_apart_and_never_ranked():
    newest, other = contender("newest", said(0.5)), contender("elsewhere", said(3.0, digest="other rows"))
    ranking = rank("d", [newest, other], AUROC)
    assert [item.name for item in ranking.ranked] == ["newest"]
    assert ranking.apart == ("elsewhere (on other rows, other rows)",)
    assert ranking.winner() == "newest is the only model on these rows"


def test_what_cannot_be_ranked_is_told_with_what_there_is():
    with pytest.raises(ConfigError, match="--metric: expected a metric, found 'f2'") as refusal:
        rank("d", [], Wanted("f2"))
    assert refusal.value.exit_code == 2 and "did you mean f1?" in refusal.value.hint
    with pytest.raises(ConfigError, match=r"no score 'dice' .* there is findings\.accuracy"):
        rank("d", [contender("one", said(1.0))], Wanted("dice"))
    with pytest.raises(ConfigError, match="--head: no auroc of 'finding' is on record") as refusal:
        rank("d", [contender("one", said(1.0))], Wanted("auroc", head="finding"))
    assert refusal.value.hint == "choose findings"
    with pytest.raises(DataError, match="no evaluation of d is on record"):
        rank("d", [], AUROC)
    with pytest.raises(ConfigError, match="no score 'auroc' for label 'z'") as refusal:
        rank("d", [contender("one", said(1.0))], Wanted("auroc", label="z"))
    assert refusal.value.hint == "labels are x, y, macro"


def test_predictions_of_other_images_cannot_be_paired():
    first, second = said(1.0), said(1.0)
    assert paired.same_rows(first, second)
    assert not paired.same_rows(first, said(1.0, digest="other"))
    assert not paired.same_rows(first, predictions(second.probabilities["findings"][::-1], second.targets["findings"],
                                                   groups=list(second.group[::-1])))  # fmt: skip


def test_the_same_model_against_itself_differs_by_nothing():
    found = paired.difference(said(1.0), said(1.0), paired.Question(INDEPENDENT, "auroc", resamples=100))
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_page_names_the_winner_and_warns_of_test_rows():
    models = [contender("one", said(1.0), "test"), contender("two & more", said(0.2), "test")]
    ranking = rank("d", models, AUROC)
    page = ranking_page(ranking)
    assert ranking.winner().replace("&", "&amp;") in page
    assert "These are test rows" in page and "two &amp; more" in page
    drawn = forest(ranking)
    assert drawn.csv.count("\n") == 3 and drawn.png == forest(ranking).png


def test_names_that_stand_twice_are_numbered():
    assert numbered(["a", "b", "a"]) == ["a #1", "b", "a #2"]


def test_several_metrics_stand_beside_the_one_that_ranks():
    models = [contender("one", said(1.0)), contender("two", said(0.2))]
    by = {metric: rank("d", models, Wanted(metric, resamples=100)) for metric in ("auroc", "brier", "f1")}
    page = ranking_page(by["auroc"], [by["brier"], by["f1"]])
    [table] = re.findall(r"<h2>Every metric</h2>.*?</table>", page, re.DOTALL)
    assert re.findall("<th>([^<]+)", table) == ["model", *(ranking.what() for ranking in by.values())]
    for name in ("one", "two"):
        values = [f"{ranking.of(name).value:.4f}" for ranking in by.values()]
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        assert f"<td>{name}</td>{cells}" in table
    assert "Every metric" not in ranking_page(by["auroc"])
    assert by["auroc"].of("three") is None


def test_the_verb_takes_a_metric_again_and_again(monkeypatch, tmp_path, capfd):
    """What lies between the command line and the store; the rest is in test_tune.py."""
    models = (contender("one", said(1.0)), contender("two", said(0.2)))
    monkeypatch.setattr(comparing, "contenders", lambda name, role: models)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["compare", "phantom", "--metric", "auroc", "--metric", "f1", "--metric", "brier"]) == 0
    header, first, second = capfd.readouterr().out.splitlines()[:3]
    assert header.split("verdict")[1].split() == ["findings", "f1", "(macro)", "findings", "brier", "(macro)"]
    assert first.split()[1] == "one" and second.split()[1] == "two"
    assert f"{models[0].evaluation.score('f1').value:.4f} (" in first
    assert cli.run(["compare", "phantom", "--metric", "brier", "--metric", "f1", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["metric"], [item["metric"] for item in told["also"]]) == ("brier", ["f1"])
    assert cli.run(["compare", "phantom", "--metric", "auroc", "--metric", "nope"]) == 2

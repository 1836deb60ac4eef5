"""Rank the models of a dataset by one metric, on the same rows, with the paired difference to the best.

Evaluations on other rows are listed apart and never ranked with the rest. A model whose interval of the difference
covers 0 is not shown to be worse than the best, and is called a tie.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medflow import paired
from medflow.errors import ConfigError, DataError
from medflow.metrics import check_name, orientation
from medflow.records import Evaluation, HeadSpec, Predictions, Ranked, Ranking, Score


@dataclass(frozen=True)
class Contender:
    """One model, what it was measured to be worth, and how to get at what it said of each row."""

    name: str
    made: str
    """Run that evaluated it."""
    evaluation: Evaluation
    predictions: Callable[[], Predictions]


@dataclass(frozen=True)
class Wanted:
    """What to rank by."""

    metric: str
    head: str | None = None
    label: str = "macro"
    resamples: int = 2000
    seed: int = 0


def rank(dataset: str, contenders: Sequence[Contender], wanted: Wanted) -> Ranking:
    """The ranking of the contenders on the rows of the newest (the first); larger is better, or smaller where it is.

    Raises ConfigError where no score is as wanted, DataError where there are no contenders.
    """
    check_name("--metric", wanted.metric)
    if not contenders:
        raise DataError(f"no evaluation of {dataset} is on record", hint=f"`medflow run {dataset}` makes the first")
    rows = contenders[0].evaluation.rows_digest
    score = _wanted_score(contenders[0].evaluation, wanted)
    comparable = [item for item in contenders if _comparable(item, rows, wanted, score.head)]
    sign = orientation(wanted.metric)
    ordered = sorted(comparable, key=lambda item: _order(item, wanted, score.head, sign))
    best, said = ordered[0], ordered[0].predictions()
    return Ranking(
        dataset=dataset,
        role=best.evaluation.role,
        rows_digest=rows,
        head=score.head,
        metric=wanted.metric,
        label=score.label,
        confidence=best.evaluation.confidence,
        ranked=tuple(_ranked(item, best, said, wanted, score.head) for item in ordered),
        apart=tuple(f"{item.name} ({_why_apart(item, rows)})" for item in contenders if item not in comparable),
    )


def numbered(names: Sequence[str]) -> list[str]:
    """Names told apart by a number where one stands twice."""
    total, seen = Counter(names), Counter[str]()
    told = []
    for name in names:
        seen[name] += 1
        told.append(f"{name} #{seen[name]}" if total[name] > 1 else name)
    return told


def _wanted_score(evaluation: Evaluation, wanted: Wanted) -> Score:
    """What is wanted comes from the command line, so that its absence is an error of usage."""
    try:
        return evaluation.score(wanted.metric, head=wanted.head, label=wanted.label)
    except DataError as error:
        heads = {item.head for item in evaluation.scores if item.metric == wanted.metric}
        labels = dict.fromkeys(item.label for item in evaluation.scores if item.head == wanted.head or not wanted.head)
        if wanted.head and wanted.head not in heads and heads:
            raise ConfigError(
                f"--head: no {wanted.metric} of {wanted.head!r} is on record",
                hint=f"choose {' or '.join(sorted(heads))}",
            ) from error
        hint = f"labels are {', '.join(labels)}" if heads else error.hint
        raise ConfigError(f"--metric, --label: {error.message}", hint=hint) from error


def _comparable(item: Contender, rows: str, wanted: Wanted, head: str) -> bool:
    if item.evaluation.rows_digest != rows:
        return False
    try:
        item.evaluation.score(wanted.metric, head=head, label=wanted.label)
    except DataError:
        return False
    return True


def _why_apart(item: Contender, rows: str) -> str:
    if item.evaluation.rows_digest != rows:
        return f"on other rows, {item.evaluation.rows_digest[:12]}"
    return "without this score"


def _order(item: Contender, wanted: Wanted, head: str, sign: int) -> tuple[bool, float, int, str]:
    value = item.evaluation.score(wanted.metric, head=head, label=wanted.label).value
    return math.isnan(value), -sign * value if not math.isnan(value) else 0.0, item.evaluation.bytes, item.name


def _ranked(item: Contender, best: Contender, said: Predictions, wanted: Wanted, head: str) -> Ranked:
    score = item.evaluation.score(wanted.metric, head=head, label=wanted.label)
    apart = None if item is best else _difference(item.predictions(), said, score.head, score.label, wanted, item)
    return Ranked(
        name=item.name,
        made=item.made,
        variant=item.evaluation.variant,
        value=score.value,
        low=score.low,
        high=score.high,
        n=score.n,
        bytes=item.evaluation.bytes,
        difference=0.0 if apart is None else apart.difference,
        difference_low=0.0 if apart is None else apart.low,
        difference_high=0.0 if apart is None else apart.high,
        verdict="best" if apart is None else _verdict(apart),
    )


def _difference(
    own: Predictions, best: Predictions, head: str, label: str, wanted: Wanted, item: Contender
) -> paired.Difference:
    question = paired.Question(
        head=_head(own, head),
        metric=wanted.metric,
        label=label,
        resamples=wanted.resamples,
        confidence=item.evaluation.confidence,
        seed=wanted.seed,
    )
    if not paired.same_rows(own, best):
        raise DataError(
            f"the predictions of {item.name} and the best are not of the same rows, though their evaluations are",
            hint="run the pipeline again: stored predictions do not fit their evaluation",
        )
    return paired.difference(own, best, question)


def _head(predictions: Predictions, name: str) -> HeadSpec:
    return next(head for head in predictions.heads if head.name == name)


def _verdict(apart: paired.Difference) -> str:
    """``worse`` only where the whole interval lies below 0."""
    if math.isnan(apart.high) or math.isnan(apart.difference):
        return "not comparable"
    return "worse" if apart.high < 0 else "tie"

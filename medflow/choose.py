"""Which model to go on with, and which compressed variant of it to ship. Validation rows only.

``select`` ranks models; ``choose`` accepts a variant only when it keeps the metric within a margin of the
reference and is not slower than it. Every verdict says why, with figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medflow.config.sections import ChooseConfig, SelectConfig
from medflow.errors import ConfigError, DataError
from medflow.metrics import orientation
from medflow.records import Bundle, Choice, Evaluation, Score, Verdict


def select(evaluations: Sequence[Evaluation], config: SelectConfig) -> Choice:
    """The model with the best macro metric; of equals the smaller file, then the first name.

    ``Choice.chosen`` is the chosen evaluation's ``model``. Models without a label head are ranked by Dice.
    Raises DataError where the evaluations cannot be compared, or none has a defined value.
    """
    _check(evaluations)
    _refuse_twins([item.model for item in evaluations], "model")
    metric = _common_metric(evaluations, config.metric)
    values = {item.model: item.score(metric).value for item in evaluations}
    defined = [item for item in evaluations if not math.isnan(values[item.model])]
    if not defined:
        raise DataError(
            f"{metric} is undefined for every model on the {evaluations[0].scores[0].n} validation rows",
            hint="a class is absent there: use more images, or another metric in select.metric",
        )
    best = min(defined, key=lambda item: (-orientation(metric) * values[item.model], item.bytes, item.model))
    verdicts = [_ranked(item, best, metric) for item in evaluations]
    return Choice(chosen=best.model, verdicts=tuple(verdicts))


def choose(reference: Evaluation, variants: Sequence[Evaluation], config: ChooseConfig) -> Choice:
    """The fastest variant that is accepted, the smaller of equals; the reference is always acceptable.

    ``Choice.chosen`` is the chosen evaluation's ``variant``. Raises DataError where the evaluations cannot be compared.
    """
    everyone = (reference, *variants)
    _check(everyone)
    _refuse_twins([item.variant for item in everyone], "variant")
    objections = {item.variant: _objection(reference, item, config) for item in variants}
    accepted = [reference, *(item for item in variants if objections[item.variant] is None)]
    best = min(accepted, key=_cost)
    verdicts = [_verdict(item, reference, best, objections.get(item.variant), config) for item in everyone]
    return Choice(chosen=best.variant, verdicts=tuple(verdicts))


def chosen_bundle(bundles: Sequence[Bundle], choice: Choice) -> Bundle:
    """The bundle that a choice names, by model or by variant. Raises DataError where it is not there."""
    for bundle in bundles:
        if choice.chosen in (bundle.card.name, bundle.card.variant):
            return bundle
    names = ", ".join(f"{bundle.card.name} ({bundle.card.variant})" for bundle in bundles) or "no bundles"
    raise DataError(f"{choice.chosen} was chosen and is not among {names}", hint="pass what was evaluated")


# -- select --------------------------------------------------------------------------------------


def _common_metric(evaluations: Sequence[Evaluation], wanted: str) -> str:
    """The wanted metric, or Dice where no model has a label head, so that nothing else could be meant."""
    if not any(_has(item, "accuracy") for item in evaluations):
        wanted = "dice"
    for item in evaluations:
        item.score(wanted)
    return wanted


def _ranked(item: Evaluation, best: Evaluation, metric: str) -> Verdict:
    score, top = item.score(metric), best.score(metric)
    loss = _loss(top, score)
    if item is best:
        reason = f"best {metric} on {score.n} validation images: {_with_interval(score)}"
    elif math.isnan(score.value):
        reason = f"{metric} is undefined on these validation images: a class is absent"
    elif loss == 0:
        reason = f"{metric} {score.value:.4f}, equal to {best.model}, which is smaller or named first"
    else:
        reason = f"{metric} {_with_interval(score)}, {loss:.4f} worse than {best.model}"
    return Verdict(
        variant=item.model,
        chosen=item is best,
        reason=reason,
        metric=metric,
        value=score.value,
        loss=loss,
        bytes=item.bytes,
        latency_ms=item.latency_ms,
    )


# -- choose --------------------------------------------------------------------------------------


def _objection(reference: Evaluation, variant: Evaluation, config: ChooseConfig) -> str | None:
    """Why a variant is not accepted, or None."""
    for metric, margin in _judged(reference, config):
        loss = _loss(reference.score(metric), variant.score(metric))
        if math.isnan(loss):
            return f"{metric} is undefined, so its loss against {reference.variant} is not known"
        if loss > margin:
            return (
                f"loses {loss:.4f} of {metric} ({reference.score(metric).value:.4f} to "
                f"{variant.score(metric).value:.4f}), more than the margin {margin:g}"
            )
    if reference.latency_ms is None or variant.latency_ms is None:
        return f"its latency, or that of {reference.variant}, was not measured"
    if variant.latency_ms > reference.latency_ms:
        return f"slower than {reference.variant}: {variant.latency_ms:.2f} ms against {reference.latency_ms:.2f} ms"
    return None


def _judged(reference: Evaluation, config: ChooseConfig) -> list[tuple[str, float]]:
    """Metrics that a variant must keep, with their margins: the label metric and Dice, where there is such a head."""
    judged = [(config.metric, config.margin)] if _has(reference, config.metric) and config.metric != "dice" else []
    if _has(reference, "dice"):
        judged.append(("dice", config.mask_margin))
    if not judged or (not _has(reference, config.metric) and _has(reference, "accuracy")):
        known = ", ".join(sorted({item.metric for item in reference.scores}))
        raise ConfigError(f"choose.metric is {config.metric!r}; there is {known}", hint="name one of them")
    return judged


def _verdict(
    item: Evaluation, reference: Evaluation, best: Evaluation, objection: str | None, config: ChooseConfig
) -> Verdict:
    metric, _ = _judged(reference, config)[0]
    loss = _loss(reference.score(metric), item.score(metric))
    kept = ", ".join(
        f"{name} {item.score(name).value:.4f} (loses {_loss(reference.score(name), item.score(name)):.4f}, "
        f"margin {margin:g})"
        for name, margin in _judged(reference, config)
    )
    if objection is not None:
        reason = objection
    elif item is best:
        rival = "the reference, and no accepted variant is faster" if item is reference else f"fastest accepted: {kept}"
        reason = f"{rival}; {_figures(item)}"
    elif item is reference:
        reason = f"the reference; {best.variant} is accepted and faster or smaller; {_figures(item)}"
    else:
        reason = f"accepted: {kept}; {_figures(item)}, but {best.variant} is faster or smaller"
    return Verdict(
        variant=item.variant,
        chosen=item is best,
        reason=reason,
        metric=metric,
        value=item.score(metric).value,
        loss=loss,
        bytes=item.bytes,
        latency_ms=item.latency_ms,
    )


def _cost(item: Evaluation) -> tuple[float, int, str]:
    latency = math.inf if item.latency_ms is None else item.latency_ms
    return latency, item.bytes, item.variant


def _figures(item: Evaluation) -> str:
    latency = "latency not measured" if item.latency_ms is None else f"{item.latency_ms:.2f} ms an image"
    return f"{latency}, {item.bytes / 1e6:.2f} MB"


# -- shared --------------------------------------------------------------------------------------


def _loss(reference: Score, other: Score) -> float:
    """How much worse ``other`` is; positive is worse whatever the metric's direction. Without float dust."""
    return round(orientation(reference.metric) * (reference.value - other.value), 12)


def _with_interval(score: Score) -> str:
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"


def _has(evaluation: Evaluation, metric: str) -> bool:
    return any(item.metric == metric for item in evaluation.scores)


def _check(evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        raise DataError("there is nothing to choose from", hint="pass at least one evaluation")
    roles = sorted({item.role for item in evaluations})
    if roles != ["val"]:
        raise DataError(
            f"choices are made on validation rows, these evaluations are on {', '.join(roles)}",
            hint="evaluate on the validation rows; test rows are for the last evaluation alone",
        )
    if len({item.rows_digest for item in evaluations}) > 1:
        raise DataError(
            "the evaluations are not over the same validation rows", hint="evaluate all of them on the same rows"
        )


def _refuse_twins(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"two evaluations are of {what} {twice[0]!r}", hint=f"pass each {what} once")

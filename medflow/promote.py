"""Whether a candidate takes over a stage: a question of evidence, never of ``new >= old``.

The candidate must reach the floors with the lower end of its intervals, and must not be worse than the incumbent
by more than the margin: the interval of the difference on the same images, resampled by group for both at once,
lies wholly above minus the margin (non-inferiority; Piaggio et al. 2012, doi 10.1001/jama.2012.87802).
Both are compared on test rows that neither learnt from, and not at all where that is unknown or too few are left.
Each head is compared: label heads by the configured metric, mask heads by Dice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from medflow import metrics, paired
from medflow.config.sections import Floor, PromoteConfig, RunConfig
from medflow.errors import ConfigError, DataError
from medflow.progress import say
from medflow.records import (
    Challenge,
    Comparison,
    Evaluation,
    HeadSpec,
    PackageFacts,
    Predictions,
    Promotion,
    Score,
    Unseen,
)


def promote(
    candidate: Evaluation,
    candidate_predictions: Predictions,
    incumbent: Evaluation | None,
    incumbent_predictions: Predictions | None,
    package: PackageFacts,
    challenge: Challenge,
    config: PromoteConfig,
    unseen: Unseen | None,
) -> Promotion:
    """The decision with its reasons and comparisons; the first reasons are those that refuse.

    The incumbent was evaluated on ``unseen``, the test rows that it never learnt from, and the candidate is compared
    with it there. A stage that is held by something that was not evaluated is not taken. Raises DataError where
    evaluation and predictions do not belong together, or are not on test rows.
    """
    _check(candidate, candidate_predictions)
    decide = _Decision(challenge, package, unseen)
    if challenge.package_digest == package.content_digest:
        return decide.refused(f"this is the package that already holds {challenge.stage}: identical content")
    passed, failed = _floors(candidate, config)
    comparisons: tuple[Comparison, ...] = ()
    if challenge.model_version is None and challenge.package_digest is None:
        if incumbent is not None:
            failed.append(f"nothing is recorded as holding {challenge.stage}, yet an incumbent was evaluated")
        passed.append(f"nothing holds {challenge.stage} yet, so there is nothing to be compared with")
    elif (objection := _unfair(unseen, config)) is not None:
        failed.append(objection)
    elif unseen is None or incumbent is None or incumbent_predictions is None:
        holder = challenge.model_version or challenge.package_digest
        failed.append(f"{challenge.stage} is held by {holder}, which could not be evaluated on these test rows")
    else:
        _check(incumbent, incumbent_predictions)
        same = _on_rows_of(candidate_predictions, incumbent_predictions, unseen)
        unlike = _unlike(same, incumbent_predictions)
        if unlike:
            failed.append(unlike)
        else:
            comparisons = compare(same, incumbent_predictions, config)
            for comparison in comparisons:
                (passed if holds(comparison) else failed).append(_in_words(comparison, config.confidence))
            passed.append(_fair(unseen))
    passed += [*_untold("candidate", candidate), *_untold("incumbent", incumbent)]
    return decide.made(passed, failed, comparisons)


def check_floors(config: PromoteConfig, heads: Sequence[HeadSpec]) -> None:
    """Raise ConfigError where a floor is on a head, or on a metric, that none of the dataset's ``heads`` has."""
    kept = tuple(floor for floor in config.floors if any(_applies(floor, head) for head in heads))
    for floor in config.floors:
        if floor not in kept:
            where = f"head {floor.head!r}" if floor.head else "these heads"
            left = ", ".join(f"{{metric: {item.metric}, value: {item.value:g}}}" for item in kept)
            raise ConfigError(
                f"promote.floors asks for {floor.metric} of {where}, and the dataset's heads are "
                f"{', '.join(head.name for head in heads)}",
                hint=f"without it: 'promote.floors=[{left}]'",
            )


def check_metrics(config: RunConfig) -> None:
    """Raise ConfigError where a setting that judges models names no metric: now, and not after a training."""
    named = {"select": config.select.metric, "choose": config.choose.metric, "promote": config.promote.metric}
    for section, metric in named.items():
        metrics.check_name(f"{section}.metric", metric)


def with_learnt_floors(config: PromoteConfig, learnt: Sequence[HeadSpec]) -> PromoteConfig:
    """The settings without the floors that none of the ``learnt`` heads has: the rest were left out on request.

    Says aloud which are dropped, since what is promoted is held to less.
    """
    kept = tuple(floor for floor in config.floors if any(_applies(floor, head) for head in learnt))
    dropped = [f"{floor.metric} {floor.value:g}" for floor in config.floors if floor not in kept]
    if dropped:
        names = ", ".join(head.name for head in learnt)
        say(f"promote.floors: {', '.join(dropped)} not asked for, since heads=[{names}] leaves out what they measure")
    return config.model_copy(update={"floors": kept})


def _applies(floor: Floor, head: HeadSpec) -> bool:
    known = metrics.MASK if head.kind == "mask" else metrics.PER_LABEL
    return floor.head in (None, head.name) and floor.metric in known


def compare(candidate: Predictions, incumbent: Predictions, config: PromoteConfig) -> tuple[Comparison, ...]:
    """Paired comparison of each head that the incumbent has, both resampled by the same groups at once."""
    return tuple(_compare_head(candidate, incumbent, head, config) for head in incumbent.heads)


def holds(comparison: Comparison) -> bool:
    """Non-inferior: the difference and its whole interval lie above minus the margin. Never true of NaN."""
    return comparison.difference > -comparison.margin and comparison.low > -comparison.margin


class _Decision:
    def __init__(self, challenge: Challenge, package: PackageFacts, unseen: Unseen | None) -> None:
        self._challenge, self._package, self._unseen = challenge, package, unseen

    def refused(self, reason: str) -> Promotion:
        return self.made([], [reason], ())

    def made(self, passed: list[str], failed: list[str], comparisons: tuple[Comparison, ...]) -> Promotion:
        held = self._challenge.package_digest not in (None, self._package.content_digest)
        verdict = f"promoted to {self._challenge.stage}" if not failed else f"not promoted to {self._challenge.stage}"
        return Promotion(
            promoted=not failed,
            stage=self._challenge.stage,
            reasons=(verdict, *failed, *passed),
            candidate=self._package.content_digest,
            incumbent=self._challenge.package_digest,
            comparisons=comparisons,
            unseen=self._unseen if held else None,
        )


# -- floors --------------------------------------------------------------------------------------


def _floors(candidate: Evaluation, config: PromoteConfig) -> tuple[list[str], list[str]]:
    """(reached, missed), in words."""
    reached: list[str] = []
    missed: list[str] = []
    for floor in config.floors:
        score = candidate.score(floor.metric, head=floor.head, label=floor.label)
        held, words = _floor(score, floor, candidate.confidence)
        (reached if held else missed).append(words)
    return reached, missed


def _floor(score: Score, floor: Floor, confidence: float) -> tuple[bool, str]:
    """A floor binds the worse end of the interval: the lower one, or the upper where smaller is better."""
    larger = metrics.orientation(floor.metric) > 0
    end = score.low if larger else score.high
    held = end >= floor.value if larger else end <= floor.value
    side, word = ("lower", "floor") if larger else ("upper", "ceiling")
    name = f"{score.metric} of {score.head} ({score.label})"
    if math.isnan(end):
        return False, f"{name} has no interval on {score.n} images, so the {word} {floor.value:g} is not shown to hold"
    relation = "reaches" if held else "does not reach"
    if not larger:
        relation = "stays under" if held else "exceeds"
    return held, (
        f"{name} is {score.value:.4f}; the {side} end {end:.4f} of its {confidence:.0%} interval "
        f"{relation} the {word} {floor.value:g} ({score.n} images)"
    )


# -- comparison ----------------------------------------------------------------------------------


def _compare_head(candidate: Predictions, incumbent: Predictions, head: HeadSpec, config: PromoteConfig) -> Comparison:
    metric = "dice" if head.kind == "mask" else _label_metric(config)
    question = paired.Question(head, metric, resamples=config.resamples, confidence=config.confidence, seed=config.seed)
    found = paired.difference(candidate, incumbent, question)
    return Comparison(
        head=head.name,
        label=found.label,
        metric=metric,
        candidate=found.first,
        incumbent=found.second,
        difference=found.difference,
        low=found.low,
        high=found.high,
        margin=config.margin,
        n=found.n,
        groups=found.groups,
    )


def _label_metric(config: PromoteConfig) -> str:
    return "auroc" if config.metric in metrics.MASK else config.metric


def _in_words(item: Comparison, confidence: float) -> str:
    figures = (
        f"{item.metric} of {item.head} ({item.label}): candidate {item.candidate:.4f}, incumbent "
        f"{item.incumbent:.4f}, difference {item.difference:+.4f} (positive is better; {confidence:.0%} interval "
        f"{item.low:+.4f} to {item.high:+.4f}, {item.n} images in {item.groups} groups)"
    )
    if math.isnan(item.low) or math.isnan(item.difference):
        return f"{figures}; undefined, so it is not shown that the candidate is no worse"
    if holds(item):
        return f"{figures}; above minus the margin {item.margin:g}: not inferior"
    return f"{figures}; reaches minus the margin {item.margin:g}: it is not shown that the candidate is no worse"


# -- what the incumbent learnt from -----------------------------------------------------------------

BY_HAND = "`medflow promote MODEL` gives the stage by hand"


def _unfair(unseen: Unseen | None, config: PromoteConfig) -> str | None:
    """Why no comparison on these test rows would be fair, or None."""
    if unseen is None or unseen.unknown:
        why = unseen.unknown if unseen else "nothing was said of it"
        return f"what the incumbent learnt from is not known ({why}); it may be these very test images; {BY_HAND}"
    if unseen.images < unseen.test_images and unseen.groups < config.unseen_groups:
        return (
            f"the incumbent learnt from {unseen.test_images - unseen.images} of the {unseen.test_images} test images, "
            f"or from others of their groups; the {unseen.images} that are left are in {unseen.groups} groups, fewer "
            f"than promote.unseen_groups={config.unseen_groups}; {BY_HAND}"
        )
    return None


def _fair(unseen: Unseen) -> str:
    if unseen.images == unseen.test_images:
        return f"the incumbent learnt from none of the {unseen.test_images} test images: compared on all of them"
    return (
        f"compared on {unseen.images} of the {unseen.test_images} test images ({unseen.groups} of {unseen.test_groups} "
        "groups): the incumbent learnt from the others, or from others of their groups"
    )


def _untold(who: str, evaluation: Evaluation | None) -> list[str]:
    """What no lineage tells: the past of weights that came as files."""
    if evaluation is None or not evaluation.starts:
        return []
    return [
        f"the {who} started from {' and '.join(evaluation.starts)}: what that was trained on before is not known; "
        "where these test images were among it, its figures are too good"
    ]


def _on_rows_of(candidate: Predictions, incumbent: Predictions, unseen: Unseen) -> Predictions:
    """The candidate's predictions of the rows that the incumbent was evaluated on.

    As they are where these are no part of the candidate's, in its order: ``_unlike`` then says so.
    """
    place = {str(name): row for row, name in enumerate(candidate.image_id)}
    rows = [place.get(str(name), -1) for name in incumbent.image_id]
    fits = (candidate.rows_digest, incumbent.rows_digest) == (unseen.test_rows, unseen.rows)
    if not fits or rows != sorted(set(rows)) or -1 in rows:
        return candidate
    return replace(
        candidate,
        rows_digest=incumbent.rows_digest,
        image_id=candidate.image_id[rows],
        group=candidate.group[rows],
        probabilities={head: values[rows] for head, values in candidate.probabilities.items()},
        targets={head: values[rows] for head, values in candidate.targets.items()},
        mask_scores={head: values[rows] for head, values in candidate.mask_scores.items()},
    )


# -- what may be compared ------------------------------------------------------------------------


def _unlike(candidate: Predictions, incumbent: Predictions) -> str | None:
    """Why two predictions cannot be paired, or None."""
    if candidate.rows_digest != incumbent.rows_digest:
        return (
            f"candidate and incumbent were evaluated on different rows ({candidate.rows_digest[:12]} and "
            f"{incumbent.rows_digest[:12]})"
        )
    if not paired.same_rows(candidate, incumbent):
        return "candidate and incumbent do not list the same images in the same order"
    heads = {head.name: head for head in candidate.heads}
    lacking = [head.name for head in incumbent.heads if heads.get(head.name) != head]
    if lacking:
        return f"the candidate lacks what the incumbent predicts, or defines it otherwise: {', '.join(lacking)}"
    return None


def _check(evaluation: Evaluation, predictions: Predictions) -> None:
    if evaluation.role != "test":
        raise DataError(
            f"a promotion is decided on test rows, this evaluation is on {evaluation.role} rows",
            hint="evaluate the bundle on the test rows",
        )
    if (evaluation.bundle_digest, evaluation.rows_digest) != (predictions.bundle_digest, predictions.rows_digest):
        raise DataError(
            "evaluation and predictions are of different bundles or rows",
            hint="pass both as one call of evaluate returned them",
        )

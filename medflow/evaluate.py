"""What a bundle is worth on some rows: every metric with its interval, and what it said of each image.

One function for every bundle, torch or ONNX, pruned or quantized, on validation or test rows. Nothing is fitted
here: thresholds and temperatures are the card's own, fitted on validation rows when the bundle was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medflow import bootstrap, metrics, scoring
from medflow.config.sections import EvaluateConfig
from medflow.decisions import decide, probabilities
from medflow.errors import DataError
from medflow.progress import say, track
from medflow.records import (
    Bundle,
    Evaluation,
    HeadSpec,
    Incumbent,
    Manifest,
    Pixels,
    Predictions,
    RowsRole,
    Score,
    Unseen,
)
from medflow.seen import unseen_of, unseen_rows

if TYPE_CHECKING:
    from medflow.pixels import Store

DIGITS = 10
"""Values are rounded here, so that the order in which a processor adds does not change a digest."""


@dataclass(frozen=True)
class Evaluated:
    evaluation: Evaluation
    predictions: Predictions


@dataclass(frozen=True)
class Samples:
    """A few images with what was true and what was said, for people to look at."""

    image_id: np.ndarray
    images: np.ndarray
    """uint8 (n, height, width, channels)."""
    masks: np.ndarray
    """The true masks, uint8 (n, height, width); all 0 where ``has_mask`` is False."""
    has_mask: np.ndarray
    predicted: np.ndarray | None
    """The predicted masks, bool (n, height, width); None where the bundle has no mask head."""


def evaluate(
    bundle: Bundle, rows: Manifest, pixels: Pixels, config: EvaluateConfig, role: Literal["val", "test"]
) -> Evaluated:
    """Score every row and measure. Raises DataError where there are no rows, or they lack one of the bundle's heads."""
    _check(bundle, rows)
    predictions = predict(bundle, rows, pixels, batch_size=config.batch_size)
    return Evaluated(evaluation=measure(bundle, predictions, config, role), predictions=predictions)


@dataclass(frozen=True)
class Heard:
    """What the incumbent is worth, on the test rows that it never learnt from."""

    evaluation: Evaluation
    predictions: Predictions
    unseen: Unseen


def evaluate_incumbent(
    incumbent: Incumbent, rows: Manifest, listed: Manifest, pixels: Pixels, config: EvaluateConfig, *, bits: int
) -> Heard:
    """The bundle that holds the stage, on those of the candidate's test rows that it never learnt from.

    ``listed`` and ``bits`` as in ``unseen_rows``. Without scores and rows where there is no such bundle, where it is
    not known what it learnt from or it learnt from all rows, or where it cannot read them (another input size, other
    labels). ``promote`` tells these apart, and takes no stage from a holder unheard.
    """
    bundle, past = incumbent.bundle, incumbent.past
    unseen = np.zeros(len(rows), dtype=bool) if past.unknown else unseen_rows(rows, listed, past, bits)
    kept = rows.take(np.flatnonzero(unseen))
    told = unseen_of(rows, kept, past)
    if bundle is None:
        return _unheard("none", kept, told)
    if not len(kept):
        return _unheard(bundle.digest(), kept, told)
    try:
        found = evaluate(bundle, kept, pixels, config, "test")
    except DataError as error:
        say(f"the incumbent {bundle.card.name} cannot be evaluated: {error.message}; {error.hint}")
        return _unheard(bundle.digest(), kept, told)
    return Heard(found.evaluation, found.predictions, told)


def predict(bundle: Bundle, rows: Manifest, pixels: Pixels, *, batch_size: int = 32) -> Predictions:
    """What the bundle says of every row. Masks are compared batch by batch and not kept."""
    card = bundle.card
    store = scoring.open_rows(rows, pixels, card.preprocess.pixels)
    pixel_rows, has_mask = rows.pixel_rows(), rows.has_mask()
    said: dict[str, list[np.ndarray]] = {head.name: [] for head in card.heads}
    batches = scoring.score(scoring.open_scorer(bundle), rows, store, batch_size=batch_size)
    for part, logits in track(batches, what=f"evaluate {card.name}", total=-(-len(rows) // batch_size)):
        scores = probabilities(logits, card.heads, card.temperatures)
        decisions = decide(scores, card.heads, card.thresholds)
        for head in card.heads:
            if head.kind == "mask":
                said[head.name].append(_overlap(decisions[head.name][:, 0], store, pixel_rows[part], has_mask[part]))
            else:
                said[head.name].append(scores[head.name])
    label_heads = [head for head in card.heads if head.kind != "mask"]
    return Predictions(
        bundle_digest=bundle.digest(),
        rows_digest=rows.digest(),
        heads=card.heads,
        image_id=rows.column("image_id"),
        group=rows.column("group"),
        probabilities={head.name: np.concatenate(said[head.name]) for head in label_heads},
        targets={head.name: rows.targets(head) for head in label_heads},
        mask_scores={head.name: np.concatenate(said[head.name]) for head in card.heads if head.kind == "mask"},
        thresholds=card.thresholds,
    )


def _overlap(predicted: np.ndarray, store: Store, rows: np.ndarray, has_mask: np.ndarray) -> np.ndarray:
    """Dice and IoU, float32 (n, 2), NaN where an image has no mask."""
    result = np.full((len(rows), 2), np.nan, dtype=np.float32)
    if has_mask.any():
        result[has_mask] = metrics.overlap(predicted[has_mask], store.masks(rows[has_mask]))
    return result


def measure(bundle: Bundle, predictions: Predictions, config: EvaluateConfig, role: RowsRole) -> Evaluation:
    """Every metric of every head with its interval (bootstrap by group), and what the card says of cost."""
    card = bundle.card
    exclusive = [head for head in predictions.heads if head.kind == "exclusive"]
    independent = [head for head in predictions.heads if head.kind == "independent"]
    said, true = predictions.probabilities, predictions.targets
    return Evaluation(
        bundle_digest=predictions.bundle_digest,
        rows_digest=predictions.rows_digest,
        model=card.name,
        variant=card.variant,
        role=role,
        scores=scores(predictions, config),
        confusion={head.name: metrics.confusion(said[head.name], true[head.name]) for head in exclusive},
        counts={
            head.name: metrics.label_counts(head, said[head.name], true[head.name], predictions.thresholds)
            for head in independent
        },
        confidence=config.confidence,
        starts=card.starts,
        bytes=card.bytes,
        latency_ms=card.latency_ms,
    )


def scores(predictions: Predictions, config: EvaluateConfig) -> tuple[Score, ...]:
    """All scores of some predictions, head by head in the order of the card."""
    return tuple(score for head in predictions.heads for score in _head_scores(predictions, head, config))


def _head_scores(predictions: Predictions, head: HeadSpec, config: EvaluateConfig) -> list[Score]:
    measures = metrics.of_head(predictions, head)
    values = metrics.plain(measures, len(predictions))
    low, high = bootstrap.intervals(
        measures,
        predictions.group,
        metrics.counted(predictions, head),
        count=config.resamples,
        seed=config.seed,
        confidence=config.confidence,
    )
    return [
        Score(head=head.name, label=label, metric=metric, value=_round(value), low=_round(a), high=_round(b), n=n)
        for (label, metric), n, value, a, b in zip(measures.names, measures.rows, values, low, high, strict=True)
    ]


def samples(bundle: Bundle, rows: Manifest, pixels: Pixels, *, count: int = 12, seed: int = 0) -> Samples:
    """A few rows drawn from a seed, those with a mask first where the bundle predicts one."""
    card = bundle.card
    head = next((head for head in card.heads if head.kind == "mask"), None)
    chosen = rows.take(_drawn(rows, count, seed, prefer=rows.has_mask() if head else np.zeros(len(rows), dtype=bool)))
    store = scoring.open_rows(chosen, pixels, card.preprocess.pixels)
    images = store.images(chosen.pixel_rows())
    predicted = None
    if head:
        said = probabilities(scoring.open_scorer(bundle)(images, chosen.reports()), card.heads, card.temperatures)
        predicted = decide(said, card.heads, card.thresholds)[head.name][:, 0]
    has_mask = chosen.has_mask()
    masks = store.masks(chosen.pixel_rows()) if has_mask.any() else np.zeros(images.shape[:3], dtype=np.uint8)
    return Samples(
        image_id=chosen.column("image_id"), images=images, masks=masks, has_mask=has_mask, predicted=predicted
    )


def _drawn(rows: Manifest, count: int, seed: int, *, prefer: np.ndarray) -> np.ndarray:
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    order = order[np.argsort(~prefer[order], kind="stable")]
    return np.sort(order[:count])


def _unheard(bundle_digest: str, rows: Manifest, unseen: Unseen) -> Heard:
    digest = rows.digest()
    nothing = np.array([], dtype=object)
    return Heard(
        unseen=unseen,
        evaluation=Evaluation(
            bundle_digest=bundle_digest, rows_digest=digest, model="", variant="", role="test", scores=()
        ),
        predictions=Predictions(
            bundle_digest=bundle_digest,
            rows_digest=digest,
            heads=(),
            image_id=nothing,
            group=nothing,
            probabilities={},
            targets={},
        ),
    )


def _check(bundle: Bundle, rows: Manifest) -> None:
    if not len(rows):
        raise DataError("there are no rows to evaluate on", hint="check the split: this part of it is empty")
    missing = [name for head in bundle.card.heads for name in _missing(rows, head)]
    if missing:
        raise DataError(
            f"{bundle.card.name} predicts {', '.join(missing[:3])}, which the rows of {rows.card.name} do not have",
            hint="evaluate a model on the dataset that it was trained for",
        )


def _missing(rows: Manifest, head: HeadSpec) -> Sequence[str]:
    return [name for name in head.columns() if name not in rows.table.column_names]


def _round(value: float) -> float:
    return round(float(value), DIGITS)

"""Whole pages: one for each artifact that is worth opening, and one for a run.

``*_page`` returns one self-contained document. ``*_pages`` returns what a dashboard shows beside an artifact,
file name → content, the first to be seen first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medflow.lineage import Ancestor
from medflow.records import (
    WHOLE_HEAD,
    Bundle,
    Choice,
    Evaluation,
    Finding,
    Findings,
    HeadSpec,
    Manifest,
    ModelCard,
    Normalization,
    Pixels,
    Predictions,
    Promotion,
    Record,
    Score,
    TuneResult,
)
from medflow.report import curves, html, images, parts, tuning
from medflow.report.figure import Figure
from medflow.report.html import Html


@dataclass(frozen=True)
class RunReport:
    """What a run left behind, as far as it came; what is absent is left out of its page."""

    title: str
    lead: str = ""
    parts: Mapping[str, Manifest] = field(default_factory=dict)
    """``train``, ``val``, ``test``."""
    findings: Findings | None = None
    cards: Sequence[ModelCard] = ()
    """Trained models and their variants, in the order they were made."""
    validation: Sequence[Evaluation] = ()
    selection: Choice | None = None
    choice: Choice | None = None
    evaluation: Evaluation | None = None
    """Of the chosen bundle on test rows."""
    predictions: Predictions | None = None
    promotion: Promotion | None = None
    samples_page: str = ""
    """Images of the chosen bundle on test rows, as ``evaluate`` stored them: drawing them again would need pixels."""
    lineage: Sequence[Ancestor] = ()


def run_page(run: RunReport) -> str:
    """One report of a whole run, in the order in which a reader asks: outcome, evidence, model, data."""
    heads = run.predictions.heads if run.predictions else ()
    return html.page(
        run.title,
        run.lead,
        html.section("Promotion", *_present(parts.promotion, run.promotion)),
        html.section("On test rows", *_present(parts.headline, run.evaluation)),
        html.section("By class", *_present(parts.per_class, run.evaluation)),
        html.section("Curves", *([parts.label_figures(run.predictions, heads)] if run.predictions else [])),
        html.section("Confusion", *([parts.confusions(run.evaluation, heads)] if run.evaluation else [])),
        html.section("Right and wrong by label", *_present(parts.counts, run.evaluation)),
        html.section("Images", *html.figures_of(run.samples_page)),
        html.section("Which model", *_present(parts.choice, run.selection)),
        html.section("Which variant", *_present(parts.choice, run.choice)),
        html.section("Variants and parity", parts.parity(run.cards)),
        html.section("Training", *(_training(card) for card in _trainings(run.cards))),
        html.section("On validation rows", *(_validation(item) for item in run.validation)),
        html.section("Data", *([parts.parts_of_split(run.parts)] if run.parts else [])),
        html.section("Checks", *_present(parts.findings, run.findings)),
        html.section("What the split found", *([parts.found(told)] if (told := _told_of_split(run)) else [])),
        html.section("Every score on test rows", *_present(parts.all_scores, run.evaluation)),
        html.section("Lineage", parts.lineage(run.lineage)),
    )


def _told_of_split(run: RunReport) -> tuple[Finding, ...]:
    """The same for each part: groups that were moved whole, groups that are unknown."""
    return next((part.findings for part in run.parts.values()), ())


def evaluation_page(
    evaluation: Evaluation, predictions: Predictions | None = None, pictures: Sequence[Figure] = ()
) -> str:
    """Scores with intervals; with predictions the curves too."""
    heads: tuple[HeadSpec, ...] = predictions.heads if predictions else _heads_of(evaluation)
    return html.page(
        f"{evaluation.model} ({evaluation.variant}) on {evaluation.role} rows",
        f"{evaluation.confidence:.0%} intervals, percentile bootstrap over groups; rows {evaluation.rows_digest[:12]}",
        html.section("Headline", parts.headline(evaluation)),
        html.section("By class", parts.per_class(evaluation)),
        html.section("Confusion", parts.confusions(evaluation, heads)),
        html.section("Right and wrong by label", parts.counts(evaluation)),
        html.section("Curves", *([parts.label_figures(predictions, heads)] if predictions else [])),
        html.section("Images", *(html.figure(picture) for picture in pictures)),
        html.section("Every score", parts.all_scores(evaluation)),
    )


def bundle_page(card: ModelCard) -> str:
    """What a model is, how it was trained, and what its variant cost in fidelity."""
    training = [html.figure(curves.training_curves(card.training))] if card.training and card.training.epochs else []
    return html.page(
        f"{card.name} ({card.variant})",
        f"{card.parameters:,} parameters, {card.bytes / 1e6:.2f} MB",
        html.section("Model", parts.card(card)),
        html.section("Training", *training),
        html.section("Parity", parts.parity([card]) if card.parity else Html("")),
        html.section("Thresholds", parts.thresholds(card)),
        html.section("Notes", html.bullets(card.notes)),
    )


def manifest_page(manifest: Manifest, pictures: Sequence[Figure] = ()) -> str:
    """What a dataset, or a part of it, holds."""
    labelled = any(head.columns() for head in manifest.card.heads)
    balance = [html.figure(curves.class_balance({"images": manifest}))] if labelled and len(manifest) else []
    return html.page(
        manifest.card.title,
        f"{len(manifest):,} images, manifest {manifest.digest()[:12]}",
        html.section("Labels", *balance),
        html.section("Dataset", parts.dataset(manifest)),
        html.section("Images", *(html.figure(picture) for picture in pictures)),
        html.section("Beside the pixels", parts.metadata(manifest)),
    )


# -- what a dashboard shows ----------------------------------------------------------------------


def manifest_pages(manifest: Manifest) -> dict[str, str | bytes]:
    return {"manifest.html": manifest_page(manifest)}


def pixels_pages(pixels: Pixels) -> dict[str, str | bytes]:
    sizes = [
        (f"{store.spec.height} x {store.spec.width} x {store.spec.channels}", store.spec.fit, len(store.images))
        for store in pixels.index.stores
    ]
    drawn = [html.figure(images.stored_montage(pixels))] if pixels.index.rows else []
    page = html.page(
        "Packed pixels",
        f"{pixels.index.rows:,} images, as every later step reads them",
        html.section("Images", *drawn),
        html.section("Stores", html.table(("size", "fit", "shards"), sizes)),
    )
    return {"pixels.html": page}


def predictions_pages(predictions: Predictions) -> dict[str, str | bytes]:
    if not len(predictions):
        return {}
    page = html.page(
        "Predictions",
        f"{len(predictions):,} images, rows {predictions.rows_digest[:12]}, bundle {predictions.bundle_digest[:12]}",
        html.section("Curves", parts.label_figures(predictions, predictions.heads)),
        html.section("Masks", *(_mask_table(predictions, head) for head in predictions.heads if head.kind == "mask")),
    )
    return {"predictions.html": page}


def bundle_pages(bundle: Bundle) -> dict[str, str | bytes]:
    pages: dict[str, str | bytes] = {"bundle.html": bundle_page(bundle.card)}
    if bundle.card.training and bundle.card.training.epochs:
        drawn = curves.training_curves(bundle.card.training)
        pages |= {"training_curves.png": drawn.png, "training_curves.csv": drawn.csv}
    return pages


def record_pages(record: Record) -> dict[str, str | bytes]:
    """A page for a small record that has one to show; none for others."""
    match record:
        case Evaluation() if record.scores:
            return {"evaluation.html": evaluation_page(record)}
        case Findings():
            return {"findings.html": html.page("Checks", "", html.section("Findings", parts.findings(record)))}
        case Choice():
            lead = f"Chosen on validation rows: {record.chosen}"
            return {"choice.html": html.page("Choice", lead, html.section("Verdicts", parts.choice(record)))}
        case Promotion():
            return {"promotion.html": html.page("Promotion", "", html.section("Decision", parts.promotion(record)))}
        case Normalization():
            return {"normalization.html": _normalization_page(record)}
        case TuneResult():
            return {"tuning.html": tuning.tune_page(record)}
        case ModelCard():
            return {"card.html": bundle_page(record)}
    return {}


# -- parts of pages ------------------------------------------------------------------------------


def _present(draw, record) -> list[Html]:
    return [] if record is None else [draw(record)]


def _trainings(cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The first card of each training: an exported or quantized variant carries the log of what it came from."""
    seen: list[ModelCard] = []
    for card in cards:
        if card.training and all(card.training != other.training for other in seen):
            seen.append(card)
    return seen


def _training(card: ModelCard) -> Html:
    log = card.training
    if log is None or not log.epochs:
        return Html("")
    words = (
        f"{card.name} ({card.variant}): best {log.monitor} {log.best_score:.4f} at epoch {log.best_epoch}, "
        f"{log.train_images:,} training and {log.val_images:,} validation images, seed {log.seed}. "
        f"Weights from: {card.weights_from}."
    )
    if log.stop_on:
        words += f" Stages ended early by {log.stop_on}."
    return html.joined([html.text(words), html.figure(curves.training_curves(log))])


def _validation(evaluation: Evaluation) -> Html:
    return html.joined([html.text(f"{evaluation.model}, {evaluation.variant}"), parts.headline(evaluation)])


def _normalization_page(record: Normalization) -> str:
    rows = [
        (f"{size.height} x {size.width}", channel, mean, std)
        for size in record.sizes
        for channel, (mean, std) in enumerate(zip(size.mean, size.std, strict=True))
    ]
    table = html.table(("size", "channel", "mean", "std"), rows)
    return html.page("Normalization", f"{record.images:,} training images", html.section("Statistics, 0 to 1", table))


def _mask_table(predictions: Predictions, head: HeadSpec) -> Html:
    rows = [
        (str(name), float(dice), float(iou))
        for name, (dice, iou) in zip(predictions.image_id, predictions.mask_scores[head.name], strict=True)
        if dice == dice  # NaN: the image has no mask
    ]
    worst = sorted(rows, key=lambda row: row[1])[:12]
    return html.joined([html.text(f"{head.name}: the lowest of {len(rows):,} images"), _dice_table(worst)])


def _dice_table(rows: Sequence[tuple[str, float, float]]) -> Html:
    return html.table(("image", "Dice", "IoU"), rows)


def _heads_of(evaluation: Evaluation) -> tuple[HeadSpec, ...]:
    """Exclusive heads as the scores name them, enough to draw their confusions."""
    return tuple(
        HeadSpec(kind="exclusive", name=name, labels=_labels(evaluation.scores, name)) for name in evaluation.confusion
    )


def _labels(scores: Sequence[Score], head: str) -> tuple[str, ...]:
    found = dict.fromkeys(item.label for item in scores if item.head == head)
    return tuple(label for label in found if label not in WHOLE_HEAD)

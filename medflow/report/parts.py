"""Sections of pages, each made of one kind of record, used by the pages and by the report of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from medflow.lineage import Ancestor
from medflow.metrics import PER_LABEL
from medflow.records import (
    WHOLE_HEAD,
    Choice,
    Evaluation,
    Finding,
    Findings,
    HeadSpec,
    Manifest,
    ModelCard,
    Predictions,
    Promotion,
    Score,
)
from medflow.report import curves, html
from medflow.report.html import Html

HEADLINE = ("auroc", "average_precision", "balanced_accuracy", "f1", "accuracy", "dice", "iou")


def headline(evaluation: Evaluation) -> Html:
    """The few numbers that are asked for first, over all classes, with their intervals."""
    shown = [score for score in evaluation.scores if score.label in WHOLE_HEAD and score.metric in HEADLINE]
    return html.table(*_score_table(shown, evaluation.confidence))


def all_scores(evaluation: Evaluation) -> Html:
    """Every score of every head. What is undefined is a dash, and is told once more in words."""
    undefined = sorted({f"{score.head}: {score.label}" for score in evaluation.scores if np.isnan(score.value)})
    table = html.table(*_score_table(evaluation.scores, evaluation.confidence))
    if not undefined:
        return table
    note = html.text(
        f"A dash is undefined on these rows (a class without positives or negatives) and is left out of the macro "
        f"mean: {', '.join(undefined)}."
    )
    return html.joined([table, note])


def per_class(evaluation: Evaluation) -> Html:
    """One row a class or label, one column a metric."""
    tables = []
    for head in dict.fromkeys(score.head for score in evaluation.scores):
        values = {(score.label, score.metric): score for score in evaluation.scores if score.head == head}
        labels = list(dict.fromkeys(label for label, _ in values if label not in WHOLE_HEAD))
        metrics = [metric for metric in PER_LABEL if any((label, metric) in values for label in labels)]
        rows = [
            (label, values[label, metrics[0]].n, *(values[label, metric].value for metric in metrics))
            for label in labels
        ]
        tables.append(html.table((head, "images", *metrics), rows))
    return html.joined(tables)


def label_figures(predictions: Predictions, heads: Sequence[HeadSpec]) -> Html:
    """ROC, precision and recall, reliability of each label head."""
    drawn = [
        html.figure(draw(predictions, head))
        for head in heads
        if head.kind != "mask"
        for draw in (curves.roc, curves.precision_recall, curves.reliability)
    ]
    return html.joined(drawn)


def confusions(evaluation: Evaluation, heads: Sequence[HeadSpec]) -> Html:
    drawn = [
        html.figure(draw(evaluation.confusion[head.name], head))
        for head in heads
        if head.name in evaluation.confusion
        for draw in (curves.confusion_counts, curves.confusion_shares)
    ]
    return html.joined(drawn)


def counts(evaluation: Evaluation) -> Html:
    """Right and wrong by label of each independent head, at the thresholds of the card."""
    header = ("true positives", "false positives", "false negatives", "true negatives")
    tables = []
    for head, labels in evaluation.counts.items():
        rows = [
            (item.label, item.true_positives, item.false_positives, item.false_negatives, item.true_negatives)
            for item in labels
        ]
        tables.append(html.table((head, *header), rows))
    return html.joined(tables)


def card(card: ModelCard) -> Html:
    """What a model is, in one table."""
    pixels = card.preprocess.pixels
    return html.facts(
        [
            ("model", card.name),
            ("variant", card.variant),
            ("weights from", card.weights_from),
            ("heads", "; ".join(f"{head.name} ({head.kind}): {', '.join(head.labels)}" for head in card.heads)),
            ("input", f"{pixels.height} x {pixels.width} x {pixels.channels}, {pixels.fit}, {pixels.interpolation}"),
            ("mean, std", f"{_numbers(card.preprocess.mean)}; {_numbers(card.preprocess.std)}"),
            ("parameters", card.parameters),
            ("multiply-adds", card.macs),
            ("file", f"{card.bytes / 1e6:.2f} MB"),
            ("one image, one thread", f"{card.latency_ms:.2f} ms" if card.latency_ms is not None else None),
            ("temperatures", ", ".join(f"{item.head} {item.value:.3f}" for item in card.temperatures)),
            ("training rows", card.data_digest[:12]),
            ("weights", card.weights_digest[:12]),
            ("source version", card.source_version),
            ("code version", card.code_version),
            ("pruned layers", len(card.pruned) or None),
        ]
    )


def thresholds(card: ModelCard) -> Html:
    rows = [(item.head, item.label, item.value, item.rule) for item in card.thresholds]
    return html.table(("head", "label", "threshold", "rule"), rows)


def parity(cards: Sequence[ModelCard]) -> Html:
    """How far each variant is from what it was made from, and what it costs."""
    rows = [
        (
            item.variant,
            item.parity.against if item.parity else "",
            f"{item.parity.max_abs_difference:.2e}" if item.parity else "",
            f"{item.parity.decisions_agree:.2%} of {item.parity.images}" if item.parity else "",
            f"{item.bytes / 1e6:.2f}",
            item.parameters,
            f"{item.latency_ms:.2f}" if item.latency_ms is not None else "",
        )
        for item in cards
    ]
    header = ("variant", "against", "largest difference", "same decision", "MB", "parameters", "ms an image")
    return html.table(header, rows)


def choice(choice: Choice) -> Html:
    rows = [
        (
            item.variant,
            item.chosen,
            item.metric,
            item.value,
            item.loss,
            f"{item.bytes / 1e6:.2f}",
            f"{item.latency_ms:.2f}" if item.latency_ms is not None else "",
            item.reason,
        )
        for item in choice.verdicts
    ]
    return html.table(("", "chosen", "metric", "value", "loss", "MB", "ms an image", "why"), rows)


def promotion(promotion: Promotion) -> Html:
    verdict = f"{'Promoted' if promotion.promoted else 'Not promoted'} to {promotion.stage}"
    compared = [html.figure(curves.comparison(promotion.comparisons))] if promotion.comparisons else []
    return html.joined([html.mark(verdict, good=promotion.promoted), html.bullets(promotion.reasons), *compared])


def findings(findings: Findings) -> Html:
    lead = html.text(f"{findings.images:,} images looked at, {findings.quarantined:,} left out of what follows.")
    return html.joined([lead, found(findings.findings)])


def found(findings: Sequence[Finding]) -> Html:
    rows = [(item.severity, item.check, item.count, item.message, "; ".join(item.examples)) for item in findings]
    return html.table(("severity", "check", "count", "what", "for example"), rows)


def dataset(manifest: Manifest) -> Html:
    card = manifest.card
    return html.facts(
        [
            ("dataset", card.title),
            ("images", len(manifest)),
            ("groups", len(set(manifest.groups().tolist()))),
            ("grouped by", card.grouped_by),
            ("with a mask", int(manifest.has_mask().sum()) or None),
            ("without pixels", manifest.table.column("pixel_row").null_count or None),
            ("modality", card.modality),
            ("licence", card.licence),
            ("citation", card.citation),
            ("limits", card.limits),
        ]
    )


def parts_of_split(parts: Mapping[str, Manifest]) -> Html:
    rows = [(name, len(part), len(set(part.column("group").tolist()))) for name, part in parts.items()]
    drawn = curves.class_balance(parts)
    return html.joined([html.table(("part", "images", "groups"), rows), html.figure(drawn)])


def metadata(manifest: Manifest) -> Html:
    """What is known beside the pixels: sizes, modes, sources, views, sexes, ages."""
    rows = []
    for name in ("source", "site", "view", "sex", "mode", "official_split"):
        counts = Counter(value for value in manifest.column(name) if value is not None)
        if counts:
            rows.append((name, ", ".join(f"{value} {count:,}" for value, count in counts.most_common(8))))
    for name in ("width", "height", "age", "mean", "std", "blur"):
        values = np.array([value for value in manifest.column(name) if value is not None], dtype=float)
        values = values[~np.isnan(values)]
        if len(values):
            low, middle, high = np.quantile(values, [0, 0.5, 1])
            rows.append((name, f"{low:,.6g} to {high:,.6g}, median {middle:,.6g}"))
    return html.table(("column", "values"), rows)


def lineage(ancestors: Sequence[Ancestor]) -> Html:
    """Every artifact by content, and what it was made from; equal content is one thing, whichever run made it."""
    names = {item.content: item.artifact for item in ancestors}
    rows = [
        (
            item.step,
            item.artifact,
            item.content[:12],
            item.cached,
            ", ".join(f"{names.get(content, 'other')} {content[:12]}" for content in item.came_from),
            item.made_in[:8],
        )
        for item in ancestors
    ]
    return html.table(("step", "artifact", "content", "cached", "made from", "made in run"), rows)


def _score_table(scores: Sequence[Score], confidence: float) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    rows: list[tuple[object, ...]] = [
        (item.head, item.label, item.metric, item.value, _interval(item.low, item.high), item.n) for item in scores
    ]
    return ("head", "label", "metric", "value", f"{confidence:.0%} interval", "images"), rows


def _interval(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"{low:.4f} to {high:.4f}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)

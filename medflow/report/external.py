"""The page of an external validation."""

from __future__ import annotations

from medflow.evaluate import Samples
from medflow.records import ExternalEvaluation, Predictions
from medflow.report import html, images, parts
from medflow.report.html import Html


def external_page(external: ExternalEvaluation, predictions: Predictions, samples: Samples) -> str:
    """Which images, what must be known about them, and every score; self-contained."""
    evaluation = external.evaluation
    drawn = images.overlays(samples.image_id, samples.images, samples.predicted, samples.masks, samples.has_mask)
    return html.page(
        f"{external.model} ({evaluation.variant}) on other images: {external.dataset}",
        f"{evaluation.confidence:.0%} intervals, percentile bootstrap over groups; thresholds are the model's own; "
        f"rows {evaluation.rows_digest[:12]}, bundle {evaluation.bundle_digest[:12]}",
        html.section("Images judged", _rows(external), html.bullets(external.notes), _left_out(external)),
        html.section("Headline", parts.headline(evaluation)),
        html.section("By class", parts.per_class(evaluation)),
        html.section("Confusion", parts.confusions(evaluation, predictions.heads)),
        html.section("Right and wrong by label", parts.counts(evaluation)),
        html.section("Curves", parts.label_figures(predictions, predictions.heads)),
        html.section("Images", html.figure(drawn)),
        html.section("What checks found", parts.found(external.findings) if external.findings else Html("")),
        html.section("Every score", parts.all_scores(evaluation)),
    )


def _rows(external: ExternalEvaluation) -> Html:
    compared = f"{external.compared:,}" if external.compared is not None else "not known"
    return html.facts(
        [
            ("images listed", external.images),
            ("images judged", external.judged),
            ("groups", external.groups),
            ("images of the training compared with", compared),
            ("source", external.source.uri or external.source.kind),
        ]
    )


def _left_out(external: ExternalEvaluation) -> Html:
    rows = [(item.reason, item.images, ", ".join(item.examples)) for item in external.left_out]
    return html.table(("left out because", "images", "for example"), rows)

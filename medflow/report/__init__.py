"""Figures and self-contained pages, drawn from records alone.

Figures (``Figure``: a PNG and the CSV behind it) are in ``curves`` and ``images``, pages in ``pages``,
escaping and inlining in ``html``. Nothing here reads a store of artifacts or writes a file.
"""

from medflow.report.curves import (
    class_balance,
    comparison,
    confusion_counts,
    confusion_shares,
    precision_recall,
    reliability,
    roc,
    training_curves,
)
from medflow.report.figure import Figure
from medflow.report.images import augmented, montage, overlays, stored_montage
from medflow.report.pages import (
    RunReport,
    bundle_page,
    bundle_pages,
    evaluation_page,
    manifest_page,
    manifest_pages,
    pixels_pages,
    predictions_pages,
    record_pages,
    run_page,
)

__all__ = [
    "Figure",
    "RunReport",
    "augmented",
    "bundle_page",
    "bundle_pages",
    "class_balance",
    "comparison",
    "confusion_counts",
    "confusion_shares",
    "evaluation_page",
    "manifest_page",
    "manifest_pages",
    "montage",
    "overlays",
    "pixels_pages",
    "precision_recall",
    "predictions_pages",
    "record_pages",
    "reliability",
    "roc",
    "run_page",
    "stored_montage",
    "training_curves",
]

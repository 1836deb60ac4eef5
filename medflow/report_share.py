"""What a model that reads reports is worth without them: the first thing to ask of one, since reports name findings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medflow.monitor import Monitor
from medflow.records import Bundle, Manifest, Pixels
from medflow.scoring import batches, open_rows, open_scorer

BATCH = 32


def with_report_share(bundle: Bundle, val: Manifest, pixels: Pixels) -> Bundle:
    """The bundle with a note in its card: a metric on validation rows, as they are and with no report at all."""
    name, read = _score(bundle, val, pixels, val.reports())
    _, unread = _score(bundle, val, pixels, (None,) * len(val))
    if math.isnan(read) or math.isnan(unread):
        return bundle
    # Pruned and quantized bundles inherit the note.
    note = f"as trained, on validation rows {name} {read:.3f} with their reports, {unread:.3f} without any"
    card = bundle.card.model_copy(update={"notes": (*bundle.card.notes, note)})
    return Bundle(root=bundle.root, card=card).write_card()


def _score(bundle: Bundle, val: Manifest, pixels: Pixels, reports: Sequence[str | None]) -> tuple[str, float]:
    """The metric by which `train.monitor: auto` judges; NaN where the rows cannot define it."""
    card = bundle.card
    scorer, store, rows = open_scorer(bundle), open_rows(val, pixels, card.preprocess.pixels), val.pixel_rows()
    heads = [head for head in card.heads if head.kind != "mask"]
    monitor = Monitor("auto", heads, {head.name: val.targets(head) for head in heads}, len(val))
    for part in batches(len(val), BATCH):
        monitor.add(np.arange(len(val))[part], scorer(store.images(rows[part]), reports[part]), {}, {})
    return monitor.name, monitor.score(math.nan)

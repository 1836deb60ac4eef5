"""A finished model judged on labelled images from elsewhere: external validation.

Nothing is fitted and nothing is learnt here: thresholds, temperatures and preprocessing are the card's own, and the
pixels are made by the function that the service calls. What the model was fitted on is left out (``medflow.seen``);
where that is not known, the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medflow import evaluate, fetch
from medflow.checks import examine
from medflow.config.sections import RunConfig
from medflow.datasets import DatasetSpec, Listing
from medflow.errors import DataError
from medflow.ingest import ingest
from medflow.matching import Matched, as_model_reads, match
from medflow.records import (
    Bundle,
    ExternalEvaluation,
    LeftOut,
    Manifest,
    ModelCard,
    Past,
    PixelSpec,
    Predictions,
)
from medflow.seen import seen_rows
from medflow.split import merged_groups

EXAMPLES = 5


@dataclass(frozen=True)
class Judged:
    external: ExternalEvaluation
    predictions: Predictions
    samples: evaluate.Samples


def judge(
    bundle: Bundle, spec: DatasetSpec, config: RunConfig, past: Past, work: Path, *, part: str | None = None
) -> Judged:
    """What ``bundle`` is worth on the images of ``config.source`` as the dataset ``spec`` reads them.

    ``past`` is what the bundle was fitted on, as far as that is known.
    ``part``: only images that the source's own lists call ``train``, ``val`` or ``test``. ``work``: a folder for what
    is fetched and packed. Checks, near-duplicates and intervals are as ``config`` states.

    Raises DataError where heads or labels do not fit the model's, where nothing is left to judge by, and what
    ``ingest`` and ``checks`` raise.
    """
    pixels_read = bundle.card.preprocess.pixels
    matched = match(bundle.card.heads, spec.card.heads)
    reader = _part(_with_channels(spec, pixels_read), part)
    source = fetch.resolve(config.source, spec.card, spec.beside)
    settings = config.ingest.model_copy(update={"fit": pixels_read.fit, "extra_sizes": ()})
    manifest, pixels = ingest(source, reader, (pixels_read.height,), settings, work)
    checked = examine(manifest, config.validate_)
    rows = as_model_reads(checked.kept, matched)
    bits = config.split.near_duplicate_bits
    kept, left_out = _unseen(rows, past, bits)
    told = (_unfit(manifest, checked.kept), *left_out)
    kept = _grouped(kept, bits)
    predictions = _of_heads(evaluate.predict(bundle, kept, pixels, batch_size=config.evaluate.batch_size), matched)
    external = ExternalEvaluation(
        model=bundle.card.name,
        dataset=spec.card.name,
        source=source,
        images=len(manifest),
        left_out=tuple(item for item in told if item.images),
        judged=len(kept),
        groups=len(set(predictions.group.tolist())),
        compared=None if past.unknown else len(past.images),
        notes=(*_untold(bundle.card), *_notes(past, rows, matched), *_lacking(kept, matched)),
        findings=checked.findings.findings,
        evaluation=evaluate.measure(bundle, predictions, config.evaluate, "external"),
    )
    return Judged(external, predictions, evaluate.samples(bundle, kept, pixels))


# -- which rows ----------------------------------------------------------------------------------


def _with_channels(spec: DatasetSpec, pixels: PixelSpec) -> DatasetSpec:
    """Images are brought to the model's channels, as the service does."""
    return replace(spec, card=spec.card.model_copy(update={"channels": pixels.channels}))


def _part(spec: DatasetSpec, part: str | None) -> DatasetSpec:
    if part is None:
        return spec
    joined = spec.listing_with
    return replace(
        spec,
        listing=lambda root: _only(spec.listing(root), part),
        listing_with=None if joined is None else lambda root, table: _only(joined(root, table), part),
    )


def _only(listing: Listing, part: str) -> Listing:
    rows = tuple(row for row in listing.rows if row.official_split == part)
    if not rows:
        there = sorted({row.official_split for row in listing.rows if row.official_split})
        raise DataError(
            f"the source's own lists call no image {part}; there is {', '.join(there) or 'no such list'}",
            hint="leave --split out to judge by all images",
        )
    return replace(listing, rows=rows)


def _unseen(rows: Manifest, past: Past, bits: int) -> tuple[Manifest, tuple[LeftOut, ...]]:
    """The rows that the model was not fitted on, and what was left out. Raises DataError where none is left."""
    if past.unknown:
        return rows, ()
    reasons = seen_rows(rows, merged_groups(rows, bits), past, bits)
    ids = rows.column("image_id")
    named = dict.fromkeys(reason for reason in reasons.tolist() if reason is not None)
    left_out = tuple(_left_out(reason, ids[reasons == reason].tolist()) for reason in named)
    kept = rows.take(np.flatnonzero([reason is None for reason in reasons.tolist()]))
    if not len(kept):
        causes = ", ".join(f"{item.images} show {item.reason}" for item in left_out)
        raise DataError(
            f"no image is left to judge by: the model was fitted on all of them ({causes})",
            hint="bring images that it has not seen; if equal names are other patients here, add --groups other",
        )
    return kept, left_out


def _unfit(listed: Manifest, kept: Manifest) -> LeftOut:
    gone = set(listed.column("image_id").tolist()) - set(kept.column("image_id").tolist())
    return _left_out("checks: unreadable, blank, a copy or the like, see the findings", sorted(gone))


def _left_out(reason: str, image_ids: Sequence[str]) -> LeftOut:
    return LeftOut(reason=reason, images=len(image_ids), examples=tuple(image_ids[:EXAMPLES]))


def _grouped(rows: Manifest, bits: int) -> Manifest:
    """The rows with groups merged as ``split`` would, so that intervals resample what belongs together as one."""
    import pyarrow

    groups = pyarrow.array(merged_groups(rows, bits).tolist(), type=pyarrow.string())
    return replace(rows, table=rows.table.set_column(rows.table.column_names.index("group"), "group", groups))


# -- what is judged ------------------------------------------------------------------------------


def _of_heads(predictions: Predictions, matched: Matched) -> Predictions:
    """Without the heads whose truth these images do not have."""
    judged = matched.judged()
    return replace(predictions, heads=tuple(head for head in predictions.heads if head.name in judged))


def _notes(past: Past, rows: Manifest, matched: Matched) -> list[str]:
    notes = []
    if past.unknown:
        notes.append(
            f"It is not known which images this model was fitted on ({past.unknown}), so none could be left "
            "out. If some of them are among these, the scores are too good."
        )
    elif not past.names and rows.card.expects_groups():
        notes.append("Names of groups were not compared with those of the training, only files and pictures.")
    unknown = int(rows.group_unknown().sum())
    if unknown and rows.card.expects_groups():
        notes.append(f"{unknown} images have no known {rows.card.grouped_by}: only files and pictures were compared.")
    return [*notes, *matched.notes()]


def _untold(card: ModelCard) -> list[str]:
    if not card.starts:
        return []
    return [
        f"The model started from {' and '.join(card.starts)}. What that was trained on before is not known, so none of "
        "it could be left out: where it is among these images, the scores are too good."
    ]


def _lacking(rows: Manifest, matched: Matched) -> list[str]:
    """Classes of which there is no image: their scores are undefined."""
    notes = []
    for head in matched.heads:
        if head.kind == "mask" or head.name not in matched.judged():
            continue
        targets = rows.targets(head)
        nowhere = ~np.isnan(targets).all(axis=0) & ~(targets == 1).any(axis=0)
        absent = [label for label, missing in zip(head.labels, nowhere, strict=True) if missing]
        if absent:
            notes.append(f"No image shows {', '.join(absent)} ({head.name}): scores of that are undefined.")
    return notes

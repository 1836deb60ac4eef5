"""The one place where a bundle's folder is completed: train, prune, export and quantize all end here.

What was written is what is judged: the weights go to the folder first, and calibration, golden set and
latency come from scoring that file. The folder gets its name only when all of it is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from medflow.decisions import Calibration, Calibrator
from medflow.errors import DataError
from medflow.graph import GOLDEN_IMAGES, GOLDEN_REPORTS
from medflow.records import Bundle, Manifest, ModelCard, Pixels, file_digest
from medflow.scoring import Scorer, latency_ms, open_rows, open_scorer, score

GOLDEN_ROWS = 8


def finish(root: Path, card: ModelCard, weights: Path, val: Manifest, pixels: Pixels) -> Bundle:
    """Make the bundle ``root`` from a weights or graph file and the card as far as its maker knows it.

    ``weights`` is moved into the bundle; the tokenizer of a model that reads reports lies beside it and is copied.
    Filled in here, whatever the given card says: ``thresholds`` and ``temperatures`` (fitted on ``val``, by the card's
    operating point), ``weights_digest``, ``bytes`` and ``latency_ms``. An existing ``root`` is replaced. Raises
    DataError where ``val`` is empty or was packed for another input.
    """
    if not len(val):
        raise DataError("there are no validation rows to calibrate on", hint="give `split.val` a larger share")
    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    bundle = Bundle(root=part, card=card)
    if card.text is not None:
        shutil.copyfile(weights.with_name(Bundle.TOKENIZER), bundle.tokenizer)
    shutil.move(weights, bundle.weights)
    bundle = _with(bundle, weights_digest=file_digest(bundle.weights), bytes=bundle.weights.stat().st_size)
    scorer = open_scorer(bundle)
    fitted = calibrate_on(scorer, card, val, pixels)
    bundle = _with(bundle, thresholds=fitted.thresholds, temperatures=fitted.temperatures)
    _write_golden(bundle, scorer, val, pixels)
    bundle = _with(bundle, latency_ms=latency_ms(bundle)).write_card()
    shutil.rmtree(root, ignore_errors=True)
    part.rename(root)
    return Bundle(root=root, card=bundle.card)


def calibrate_on(scorer: Scorer, card: ModelCard, val: Manifest, pixels: Pixels) -> Calibration:
    """Thresholds and temperatures of ``card.heads`` from validation rows, a batch at a time."""
    store = open_rows(val, pixels, card.preprocess.pixels)
    rows, has_mask = val.pixel_rows(), val.has_mask()
    targets = {head.name: val.targets(head) for head in card.heads if head.kind != "mask"}
    masks = [head.name for head in card.heads if head.kind == "mask"]
    calibrator = Calibrator(card.heads, card.operating_point)
    for part, logits in score(scorer, val, store):
        truth = store.masks(rows[part]) if masks else None
        calibrator.add(
            logits,
            {name: values[part] for name, values in targets.items()},
            {name: truth for name in masks if truth is not None},
            has_mask[part],
        )
    return calibrator.fit()


def _write_golden(bundle: Bundle, scorer: Scorer, val: Manifest, pixels: Pixels) -> None:
    """A few validation images, spread over the rows, and what this bundle says to them."""
    store = open_rows(val, pixels, bundle.card.preprocess.pixels)
    chosen = np.unique(np.linspace(0, len(val) - 1, GOLDEN_ROWS).astype(np.int64))
    images = np.ascontiguousarray(store.images(val.pixel_rows()[chosen]))
    reports = val.take(chosen).reports()
    logits = {name: np.ascontiguousarray(values) for name, values in scorer(images, reports).items()}
    stored = {GOLDEN_REPORTS: _as_bytes(reports)} if bundle.card.text is not None else {}
    save_file({GOLDEN_IMAGES: images, **stored, **logits}, bundle.golden)


def _as_bytes(reports: Sequence[str | None]) -> np.ndarray:
    return np.frombuffer(json.dumps(list(reports)).encode(), dtype=np.uint8)


def _with(bundle: Bundle, **fields: object) -> Bundle:
    return Bundle(root=bundle.root, card=bundle.card.model_copy(update=fields))

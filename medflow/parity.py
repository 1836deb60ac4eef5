"""How far a compressed or exported variant is from the bundle that it was made from."""

from __future__ import annotations

import numpy as np

from medflow.decisions import decide, probabilities
from medflow.records import Manifest, ModelCard, Parity, Pixels
from medflow.scoring import Scorer, open_rows

#: Rows compared, spread evenly over the validation rows: enough for a faulty graph to show.
IMAGES = 256
BATCH = 16


def measure(reference: Scorer, variant: Scorer, card: ModelCard, val: Manifest, pixels: Pixels) -> Parity:
    """Compare two scorers on validation rows, both read with the temperatures and thresholds of ``card``.

    ``card`` is the reference's. Decisions agree on an image where those of every label head do; for a model that
    gives a mask alone, where all its pixels do. Raises DataError where the rows were packed for another input.
    """
    store = open_rows(val, pixels, card.preprocess.pixels)
    compared = val.take(np.unique(np.linspace(0, len(val) - 1, IMAGES).astype(np.int64)))
    chosen, reports = compared.pixel_rows(), compared.reports()
    largest, agreed = 0.0, 0
    for start in range(0, len(chosen), BATCH):
        images = store.images(chosen[start : start + BATCH])
        read = reports[start : start + BATCH]
        first = probabilities(reference(images, read), card.heads, card.temperatures)
        second = probabilities(variant(images, read), card.heads, card.temperatures)
        largest = max([largest, *(_gap(first[head.name], second[head.name]) for head in card.heads)])
        agreed += int(_agree(first, second, card).sum())
    return Parity(
        against=card.variant, max_abs_difference=largest, decisions_agree=agreed / len(chosen), images=len(chosen)
    )


def _gap(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


def _agree(first: dict[str, np.ndarray], second: dict[str, np.ndarray], card: ModelCard) -> np.ndarray:
    """bool (n,)."""
    heads = [head for head in card.heads if head.kind != "mask"] or list(card.heads)
    ours, theirs = decide(first, heads, card.thresholds), decide(second, heads, card.thresholds)
    same = [_same_rows(ours[head.name], theirs[head.name]) for head in heads]
    return np.logical_and.reduce(same)


def _same_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first == second).reshape(len(first), -1).all(axis=1)

"""Which rows each optimiser step sees, in which forward passes, and on which device: the same plan in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medflow.loader import cut, repeats


@dataclass(frozen=True)
class Step:
    """One optimiser step: forward passes one after another, each divided among the ranks."""

    passes: tuple[tuple[np.ndarray, ...], ...]
    """By pass, by rank: rows, int64. A rank may have none."""
    again: tuple[tuple[np.ndarray, ...], ...]
    """Beside each row, how often the epoch drew it before, int64."""

    @property
    def rows(self) -> np.ndarray:
        """All rows, in order."""
        return np.concatenate([share for shares in self.passes for share in shares])


def plan(order: np.ndarray, *, size: int, accumulate: int, halvings: int = 0, ranks: int = 1) -> list[Step]:
    """The steps of an epoch over the rows in ``order``: ``accumulate`` batches of ``size`` each.

    Memory that does not hold a batch halves it, ``halvings`` times, and several devices share it; neither changes
    which rows a step sees. Raises TrainingError where there are fewer than two rows.
    """
    rows, again = (
        [tuple(_passes(group, 2**halvings, ranks)) for group in _grouped(cut(values, size), accumulate)]
        for values in (order, repeats(order))
    )
    return [Step(*both) for both in zip(rows, again, strict=True)]


def _grouped(batches: Sequence[np.ndarray], accumulate: int) -> list[Sequence[np.ndarray]]:
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def _passes(batches: Sequence[np.ndarray], pieces: int, ranks: int) -> list[tuple[np.ndarray, ...]]:
    cut_up = [piece for batch in batches for piece in np.array_split(batch, pieces) if len(piece)]
    return [tuple(np.array_split(piece, ranks)) for piece in cut_up]

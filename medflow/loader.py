"""Batches of packed pixels: shuffled, augmented, ahead of the training loop on threads.

Order and augmentation are functions of (seed, stage, epoch, row, how often the epoch drew the row before), so a batch
is the same whatever the number of threads and wherever an interrupted epoch is taken up again.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medflow.augment import Augmenter, changes_anything
from medflow.config.sections import Augment
from medflow.errors import TrainingError
from medflow.heads import known_terms
from medflow.pixels import Store
from medflow.records import HeadSpec, Manifest
from medflow.text import Tokenizer

#: Rows, int64 (n,), and how often each was drawn before.
Drawn = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Batch:
    """n images and what is known of them, by head name as ``medflow.heads`` takes it."""

    images: Tensor
    """uint8 (n, height, width, channels), as stored; float32 where mixed; or the features that a backbone gave."""
    targets: Mapping[str, Tensor]
    """float32 (n, labels) with NaN for unknown; a mask's is uint8 (n, height, width), 0 or 1."""
    known: Mapping[str, Tensor]
    """bool (n,), or (n, labels) for independent labels."""
    image_ids: tuple[str, ...]
    tokens: tuple[Tensor, ...] = ()
    """Token ids and attention mask of the reports, int64 (n, max_tokens); empty where the model reads none."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network takes."""
        return (self.images, *self.tokens)

    def __len__(self) -> int:
        return len(self.image_ids)

    def unlabelled(self) -> Batch:
        """The same images with nothing known of them."""
        return replace(self, known={name: torch.zeros_like(value) for name, value in self.known.items()})

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory without waiting."""
        if device.type == "cpu":
            return self
        return Batch(
            images=self.images.pin_memory().to(device, non_blocking=True),
            targets={name: value.pin_memory().to(device, non_blocking=True) for name, value in self.targets.items()},
            known={name: value.pin_memory().to(device, non_blocking=True) for name, value in self.known.items()},
            image_ids=self.image_ids,
            tokens=tuple(value.pin_memory().to(device, non_blocking=True) for value in self.tokens),
        )


@dataclass(frozen=True)
class Pass:
    """One walk over the training rows: what order, augmentation and dropout are drawn from."""

    seed: int
    stage: int
    epoch: int

    def rows(self, count: int, chances: np.ndarray | None) -> np.ndarray:
        """What this walk sees, int64 (count,): a permutation of the rows, or rows drawn by their chances."""
        return self.order(count) if chances is None else self.draw(chances)

    def order(self, rows: int) -> np.ndarray:
        """A permutation of the rows, int64 (rows,)."""
        return np.random.default_rng(self._seeds("order")).permutation(rows)

    def draw(self, chances: np.ndarray) -> np.ndarray:
        """As many rows as there are, with replacement, by their probabilities: float64 (rows,) → int64 (rows,)."""
        return np.random.default_rng(self._seeds("order")).choice(len(chances), size=len(chances), p=chances)

    def row(self, row: int, repeat: int = 0) -> tuple[int, ...]:
        """Seeds of what happens to one row where this walk has drawn it ``repeat`` times before."""
        return self._seeds("row", row, *((repeat,) if repeat else ()))

    def step(self, step: int, rank: int = 0) -> int:
        """Seed, 64 bits, of what is random inside the network at one optimiser step."""
        return self._number("step", step, *((rank,) if rank else ()))

    def mix(self, step: int, part: int, rank: int = 0) -> int:
        """Seed, 64 bits, of how the images of one forward pass are mixed."""
        return self._number("mix", step, part, rank)

    def _number(self, use: str, *more: int) -> int:
        return int(np.random.SeedSequence(self._seeds(use, *more)).generate_state(1, np.uint64)[0])

    def _seeds(self, use: str, *more: int) -> tuple[int, ...]:
        # The use comes first: numpy pads short seeds with zeros, so length alone would not tell two uses apart.
        return (("order", "row", "step", "mix").index(use), self.seed % 2**63, self.stage, self.epoch, *more)


class Examples:
    """The rows of a manifest beside their pixels. Safe to read from several threads."""

    def __init__(
        self, manifest: Manifest, store: Store, heads: Sequence[HeadSpec], tokenizer: Tokenizer | None = None
    ) -> None:
        """``tokenizer`` is that of a model that reads reports."""
        self.image_ids = manifest.column("image_id")
        self.targets = {head.name: manifest.targets(head) for head in heads if head.kind != "mask"}
        self._store = store
        self._tokens = tuple(tokenizer(manifest.reports()).named().values()) if tokenizer else ()
        self._pixel_rows = manifest.pixel_rows()
        self._features: Tensor | None = None
        self._masks = tuple(head.name for head in heads if head.kind == "mask")
        has_mask = manifest.has_mask()
        self._known = {
            head.name: has_mask if head.kind == "mask" else known_terms(head, self.targets[head.name]) for head in heads
        }

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_text(self) -> bool:
        """Whether a batch holds reports beside images."""
        return bool(self._tokens)

    def with_features(self, features: Tensor) -> Examples:
        """The same rows with what a backbone made of them, (rows, ...), as images: no pixel is read any more."""
        other = copy.copy(self)
        other._features = features
        return other

    def terms(self, rows: np.ndarray, partners: np.ndarray | None = None) -> dict[str, int]:
        """By head, how many known terms the rows have, at least 1: what a sum of losses is divided by.

        Mixed with ``partners``, a term counts where it is known of both rows.
        """
        both = {
            name: known[rows] & (known[rows if partners is None else partners]) for name, known in self._known.items()
        }
        return {name: max(1, int(known.sum())) for name, known in both.items()}

    def batch(
        self,
        rows: np.ndarray,
        augmenter: Augmenter | None = None,
        walk: Pass | None = None,
        again: np.ndarray | None = None,
    ) -> Batch:
        """The given rows, augmented where an augmenter and the pass that seeds it are given.

        ``again``, the rows' ``repeats``, tells draws of one row apart; None where each comes once.
        """
        stored = self._pixel_rows[rows]
        masks = np.array(self._store.masks(stored)) if self._masks else None
        if self._features is not None:
            return self._batch(rows, self._features[torch.from_numpy(rows)], masks)
        images = np.array(self._store.images(stored))
        if augmenter is not None and walk is not None:
            before = np.zeros_like(rows) if again is None else again
            for index, (row, repeat) in enumerate(zip(rows, before, strict=True)):
                mask = None if masks is None else masks[index]
                images[index], changed = augmenter(images[index], mask, walk.row(int(row), int(repeat)))
                if masks is not None:
                    masks[index] = changed
        return self._batch(rows, torch.from_numpy(images), masks)

    def _batch(self, rows: np.ndarray, images: Tensor, masks: np.ndarray | None) -> Batch:
        targets = {name: torch.from_numpy(values[rows]) for name, values in self.targets.items()}
        if masks is not None:
            targets |= {name: torch.from_numpy(masks) for name in self._masks}
        return Batch(
            images=images,
            targets=targets,
            known={name: torch.from_numpy(self._known[name][rows]) for name in targets},
            image_ids=tuple(str(name) for name in self.image_ids[rows]),
            tokens=tuple(torch.from_numpy(values[rows]) for values in self._tokens),
        )


def cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    """An order in batches of ``size``; a last one of a single row joins the batch before it.

    Batch normalization has no variance over one image, and dropping the row would leave it unlearnt.
    Raises TrainingError where there are fewer than two rows.
    """
    if len(order) < 2:
        raise TrainingError(
            f"there are {len(order)} training rows, and at least 2 are needed",
            hint="give the source more images, or `split.train` a larger share",
        )
    bounds = [*range(0, len(order), size), len(order)]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1 < size:
        del bounds[-2]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def repeats(order: np.ndarray) -> np.ndarray:
    """How often the row at each place of an order came before it, int64 like ``order``; 0 where each comes once."""
    places = np.argsort(order, kind="stable")
    rows = order[places]
    found = np.empty_like(order)
    found[places] = np.arange(len(order)) - np.searchsorted(rows, rows)
    return found


def batches(
    examples: Examples,
    parts: Sequence[np.ndarray],
    *,
    augment: Augment,
    walk: Pass,
    again: Sequence[np.ndarray] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Training batches of the given rows, in order; ``workers`` threads prepare them ahead.

    ``again`` has the rows' ``repeats``, part by part; None where each comes once.
    """
    drawn = [(rows, None) for rows in parts] if again is None else list(zip(parts, again, strict=True))
    yield from _ahead(examples, drawn, augment if changes_anything(augment) else None, walk, workers)


@dataclass(frozen=True)
class Sample:
    """Some training rows as stored and as a network sees them; for people to look at."""

    image_id: tuple[str, ...]
    before: np.ndarray
    """uint8 (n, height, width, channels)."""
    after: np.ndarray
    masks_before: np.ndarray | None
    """uint8 (n, height, width), 0 or 1; None where no head asks for masks."""
    masks_after: np.ndarray | None


def sample(
    examples: Examples, augment: Augment, seed: int, *, chances: np.ndarray | None = None, count: int = 8
) -> Sample:
    """The first rows that the first epoch draws, as stored and as augmented. The same seed, the same pictures.

    ``chances``: float64 (rows,), where rows are drawn with replacement; None where each is drawn once.
    """
    walk = Pass(seed, 0, 0)
    order = walk.rows(len(examples), chances)
    rows = order[:count]
    before = examples.batch(rows)
    after = examples.batch(rows, Augmenter(augment), walk, repeats(order)[:count])
    masks = [name for name, values in before.targets.items() if values.ndim == 3]
    return Sample(
        image_id=before.image_ids,
        before=before.images.numpy(),
        after=after.images.numpy(),
        masks_before=before.targets[masks[0]].numpy() if masks else None,
        masks_after=after.targets[masks[0]].numpy() if masks else None,
    )


def in_order(examples: Examples, size: int) -> list[np.ndarray]:
    """Every row once, in the manifest's order, ``size`` at a time."""
    rows = np.arange(len(examples))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def plain_batches(examples: Examples, parts: Sequence[np.ndarray], *, workers: int = 0) -> Iterator[Batch]:
    """The given rows, as stored: for validation."""
    yield from _ahead(examples, [(rows, None) for rows in parts], None, None, workers)


def _ahead(
    examples: Examples, parts: Sequence[Drawn], augment: Augment | None, walk: Pass | None, workers: int
) -> Iterator[Batch]:
    own = threading.local()

    def prepare(drawn: Drawn) -> Batch:
        rows, again = drawn
        if augment is not None and "augmenter" not in own.__dict__:
            own.augmenter = Augmenter(augment)
        return examples.batch(rows, own.augmenter if augment is not None else None, walk, again)

    if workers == 0:
        yield from map(prepare, parts)
        return
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        try:
            for drawn in parts:
                waiting.append(pool.submit(prepare, drawn))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

"""Which images are nearly the same picture, from their 64-bit perceptual hashes.

Pairs within a Hamming distance of ``bits`` are found by multi-index hashing (Norouzi, Punjani and
Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing", TPAMI 2014): the 64 bits are dealt
into ``bits + 1`` bands, so by the pigeonhole principle any two hashes that differ in at most ``bits``
bits agree on a whole band, and only hashes that share a band are compared. The search is exact.

Clusters are connected components (single linkage), because a split is safe only if *no* pair of
near-duplicates is cut. The price is chaining: A and C may share a cluster though only B is near both,
and many such steps can join images that look nothing alike. A smaller ``bits`` shortens the chains;
`validate` reports the largest cluster so that a run-away one is seen.

A picture without structure has a hash that says nothing: every blank image hashes alike, whatever its
patient. Such hashes, with almost all bits equal, stand alone here. Blank images are the business
of `validate`, and those with equal bytes are found by their sha256.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medflow.errors import DataError

HASH_BITS = 64
HEX_DIGITS = frozenset("0123456789abcdef")
FEATURELESS_BITS = 3
"""A hash with this many set (or unset) bits or fewer comes from a picture without structure."""
BANDED_BITS = 7
"""Above this the bands are so narrow that comparing every pair in sequence is faster."""
EDGES_AT_ONCE = 4_000_000
"""Pairs held before they are merged: 64 MB, however many images are alike."""


def near_duplicate_groups(phash: Sequence[str | None], bits: int) -> np.ndarray:
    """Cluster of each image: int64 (N,), numbered from 0 in order of first appearance.

    ``phash`` holds 16 hex digits an image, or None where there is no hash; those images, and featureless
    ones, are each alone. ``bits`` is the largest Hamming distance of a pair, 0 (equal hashes only) to 63.
    Raises DataError for a hash that is not 16 hex digits.
    """
    hashes, known = _parse(phash)
    distinct, place = np.unique(hashes[known], return_inverse=True)
    rows = np.full(len(hashes), -1, dtype=np.int64)
    rows[known] = _clusters(distinct, bits)[place]
    alone = ~known
    rows[alone] = len(distinct) + np.arange(alone.sum())
    return by_first_appearance(rows)


def connected(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Component of each of ``count`` nodes, int64, given edges as two index arrays of equal length."""
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def by_first_appearance(labels: np.ndarray) -> np.ndarray:
    """The same partition, int64 (N,), numbered from 0 in the order in which clusters first appear."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[place]


def _parse(phash: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes as uint64 (N,), and bool (N,): there is one and it says something."""
    known = np.array([text is not None for text in phash], dtype=bool)
    hashes = np.array([0 if text is None else _number(text) for text in phash], dtype=np.uint64)
    ones = np.bitwise_count(hashes)
    known &= (ones > FEATURELESS_BITS) & (ones < HASH_BITS - FEATURELESS_BITS)
    return hashes, known


def _number(text: str) -> int:
    if len(text) == HASH_BITS // 4 and set(text) <= HEX_DIGITS:
        return int(text, 16)
    raise DataError(
        f"{text!r} is no perceptual hash: expected {HASH_BITS // 4} hex digits", hint="ingest the source again"
    )


def _clusters(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Component of each distinct hash, int64 (M,)."""
    labels = np.arange(len(hashes), dtype=np.int64)
    if bits == 0 or len(hashes) < 2:
        return labels
    for left, right in _batched(_near_pairs(hashes, bits)):
        labels = connected(len(hashes), labels[left], labels[right])[labels]
    return labels


def _batched(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Join small batches of pairs, so that merging runs seldom and memory stays bounded."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for pair in pairs:
        held.append(pair)
        count += len(pair[0])
        if count >= EDGES_AT_ONCE:
            yield _joined(held)
            held, count = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([left for left, _ in held]), np.concatenate([right for _, right in held])


def _near_pairs(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of positions within ``bits``, some of them more than once."""
    if bits > BANDED_BITS:
        yield from _compare_all(hashes, bits)
        return
    for band in _bands(bits):
        keys = hashes & band
        order = np.argsort(keys, kind="stable")
        for left, right in _pairs_of_equal(keys[order]):
            left, right = order[left], order[right]
            near = np.bitwise_count(hashes[left] ^ hashes[right]) <= bits
            if near.any():
                yield left[near], right[near]


def _compare_all(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for step in range(1, len(hashes)):
        left = np.flatnonzero(np.bitwise_count(hashes[:-step] ^ hashes[step:]) <= bits)
        if len(left):
            yield left, left + step


def _bands(bits: int) -> list[np.uint64]:
    """``bits + 1`` masks that deal out the 64 bits in turn.

    In turn, not in runs: neighbouring bits of a DCT hash are neighbouring frequencies, and a run of low ones
    is the same in most radiographs, which would put them all into one bucket.
    """
    count = bits + 1
    return [np.uint64(sum(1 << bit for bit in range(first, HASH_BITS, count))) for first in range(count)]


def _pairs_of_equal(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with equal keys, in a sorted array: first neighbours, then one further, and so on."""
    left = np.arange(len(keys))
    step = 0
    while len(left):
        step += 1
        left = left[left < len(keys) - step]
        left = left[keys[left] == keys[left + step]]
        if len(left):
            yield left, left + step

"""A WordPiece vocabulary learned from words and their counts: the same counts, the same vocabulary.

Pairs of neighbouring pieces are joined, the most frequent first (Sennrich et al. 2016, arXiv 1508.07909, with BERT's
``##`` before every piece that does not start a word). Ties go to the pair that sorts first. The trainer of the
`tokenizers` package (0.23) walks hash maps whose order differs from process to process, and gave another vocabulary
in three of nine trials on equal text: no ground for a training that must repeat bit for bit.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)
CONTINUED = "##"
#: Words that count in learning, the most frequent first: bounds the time on a large set of reports.
MAX_WORDS = 20_000

Pair = tuple[str, str]


def learn_vocabulary(words: Mapping[str, int], size: int, *, at_least: int = 2) -> tuple[str, ...]:
    """Pieces in the order of their ids: special ones, single characters, joined ones.

    ``words`` are counts of normalized words. Joining stops at ``size`` pieces, or where no pair occurs ``at_least``
    times. Every character keeps its piece even where these alone exceed ``size``, so that no training word is unknown.
    """
    counts = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:MAX_WORDS]
    split = [_characters(word) for word, _ in counts]
    alphabet = sorted({piece for pieces in split for piece in pieces})
    vocabulary = dict.fromkeys((*SPECIAL, *alphabet))
    pairs = _Pairs(split, [count for _, count in counts])
    while len(vocabulary) < size:
        best = pairs.most_frequent(at_least)
        if best is None:
            break
        vocabulary[pairs.join(best)] = None
    return tuple(vocabulary)


class _Pairs:
    """Words in pieces, and how often two pieces are neighbours; kept up to date as pairs are joined."""

    def __init__(self, split: list[list[str]], counts: list[int]) -> None:
        self._split, self._counts = split, counts
        self._seen: Counter[Pair] = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for word in range(len(split)):
            self._count(word, 1)

    def most_frequent(self, at_least: int) -> Pair | None:
        best = min(self._seen, key=lambda pair: (-self._seen[pair], pair), default=None)
        return best if best is not None and self._seen[best] >= at_least else None

    def join(self, pair: Pair) -> str:
        """Join the pair in every word, and return the new piece."""
        joined = pair[0] + pair[1].removeprefix(CONTINUED)
        for word in sorted(self._where[pair]):
            self._count(word, -1)
            self._split[word] = _joined(self._split[word], pair, joined)
            self._count(word, 1)
        return joined

    def _count(self, word: int, sign: int) -> None:
        for pair in itertools.pairwise(self._split[word]):
            self._seen[pair] += sign * self._counts[word]
            if self._seen[pair] == 0:
                del self._seen[pair]
            if sign > 0:
                self._where[pair].add(word)
            else:
                self._where[pair].discard(word)


def _characters(word: str) -> list[str]:
    return [letter if place == 0 else f"{CONTINUED}{letter}" for place, letter in enumerate(word)]


def _joined(pieces: list[str], pair: Pair, joined: str) -> list[str]:
    result: list[str] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            result.append(joined)
            place += 2
        else:
            result.append(pieces[place])
            place += 1
    return result

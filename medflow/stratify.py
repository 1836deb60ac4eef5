"""Place groups of images into parts so that every class keeps its share in each.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data",
ECML PKDD 2011), extended from single examples to groups that must stay whole. The scarcest stratum is placed
first, while there is still a choice; of its groups the largest first. Two things differ from the paper:

- A group goes to the part that is *relatively* emptiest, over all of the group's strata, among those it
  fits, not to the one with the largest absolute demand. With groups of unequal size the latter hands all
  large groups to the training part, and the test part then holds only patients with few images.
- When as few groups of a stratum are left as parts that still lack it, those parts get them, and a repair
  moves single groups where a class has missed a part nonetheless.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ATTEMPTS = 16
"""Orders tried before a class is given up as impossible to spread."""
FREE = -1
ROUNDING = 1e-9


def place(
    counts: np.ndarray,
    sizes: np.ndarray,
    fractions: Sequence[float],
    *,
    fixed: np.ndarray,
    required: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Part of each group, int64 (groups,), 0 to parts - 1.

    ``counts`` (groups, strata) and ``sizes`` (groups,) are images; every group has at least one stratum.
    ``fractions`` (parts,) add up to 1. ``fixed`` (groups,) holds a part that is kept, or ``FREE``.
    ``required`` (strata,) marks what every part should hold; see ``lacking`` for what could not be had.
    The result is a function of its arguments alone, the order of the groups included.
    """
    for attempt in range(ATTEMPTS):
        order = np.random.default_rng([seed, attempt]).permutation(len(sizes))
        filling = _Filling(counts, sizes, fractions, fixed)
        filling.place_all(order)
        filling.repair(np.flatnonzero(required), order)
        if not lacking(filling.parts, counts, len(fractions))[:, required].any():
            break
    return filling.parts


def lacking(parts: np.ndarray, counts: np.ndarray, n_parts: int) -> np.ndarray:
    """bool (parts, strata): the part holds no image of the stratum."""
    held = [counts[parts == part].sum(axis=0) for part in range(n_parts)]
    return np.stack(held) == 0


def _pairs(counts: np.ndarray) -> list[list[tuple[int, int]]]:
    """For each group its strata, as (stratum, images)."""
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(len(counts))]
    groups, strata = np.nonzero(counts)
    for group, stratum, images in zip(groups.tolist(), strata.tolist(), counts[groups, strata].tolist(), strict=True):
        pairs[group].append((stratum, images))
    return pairs


class _Filling:
    """The parts while they fill. Plain lists inside, since numpy is slow on three numbers at a time."""

    def __init__(self, counts: np.ndarray, sizes: np.ndarray, fractions: Sequence[float], fixed: np.ndarray) -> None:
        self.counts = counts
        self.images: list[int] = sizes.tolist()
        self.strata = _pairs(counts)
        self.n_parts = len(fractions)
        self.parts = fixed.astype(np.int64)
        self.fixed = fixed != FREE
        share = np.asarray(fractions, dtype=np.float64)
        goal, goal_size = np.outer(share, counts.sum(axis=0)), share * sizes.sum()
        there = [self.parts == part for part in range(self.n_parts)]
        self.goal = goal.tolist()
        self.want = (goal - np.stack([counts[part].sum(axis=0) for part in there])).tolist()
        self.room = (goal_size - np.array([sizes[part].sum() for part in there])).tolist()
        self.held = np.stack([(counts[part] > 0).sum(axis=0) for part in there]).tolist()

    def place_all(self, order: np.ndarray) -> None:
        """Place every free group, scarcest stratum first; ``order`` breaks ties."""
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        while (free := self.parts == FREE).any():
            images = self.counts[free].sum(axis=0)
            stratum = int(np.argmin(np.where(images > 0, images, np.iinfo(np.int64).max)))
            members = np.flatnonzero(free & (self.counts[:, stratum] > 0))
            members = members[np.lexsort((rank[members], -self.counts[members, stratum]))]
            for done, group in enumerate(members.tolist()):
                self._put(group, self._best_part(group, stratum, len(members) - done))

    def _best_part(self, group: int, stratum: int, left: int) -> int:
        """Where a group goes; ``left`` groups of the stratum are not yet placed, this one included."""
        without = [part for part in range(self.n_parts) if self.held[part][stratum] == 0]
        choices = without if without and left <= len(without) else range(self.n_parts)
        fits = [part for part in choices if self._fits(group, part)]
        if fits:
            return max(fits, key=lambda part: (self._emptiness(group, part), self.room[part], -part))
        return max(choices, key=lambda part: (self.want[part][stratum], self.room[part], -part))

    def _fits(self, group: int, part: int) -> bool:
        want = self.want[part]
        roomy = self.room[part] >= self.images[group] - ROUNDING
        return roomy and all(want[stratum] >= images - ROUNDING for stratum, images in self.strata[group])

    def _emptiness(self, group: int, part: int) -> float:
        """How much of what a part should hold it still lacks, summed over the group's strata."""
        want, goal = self.want[part], self.goal[part]
        return sum(want[stratum] / goal[stratum] for stratum, _ in self.strata[group])

    def _put(self, group: int, part: int) -> None:
        self._count(group, part, 1)
        self.parts[group] = part

    def _count(self, group: int, part: int, sign: int) -> None:
        self.room[part] -= sign * self.images[group]
        for stratum, images in self.strata[group]:
            self.want[part][stratum] -= sign * images
            self.held[part][stratum] += sign

    def repair(self, required: np.ndarray, order: np.ndarray) -> None:
        """Move one free group to each part that lacks a required stratum, where no other part then lacks one."""
        for stratum in required.tolist():
            for part in range(self.n_parts):
                if self.held[part][stratum] == 0:
                    members = order[(self.counts[order, stratum] > 0) & ~self.fixed[order]]
                    movable = [group for group in members.tolist() if self._can_leave(group, required)]
                    if movable:
                        group = min(movable, key=lambda group: self.images[group])
                        self._count(group, int(self.parts[group]), -1)
                        self._put(group, part)

    def _can_leave(self, group: int, required: np.ndarray) -> bool:
        held = self.held[self.parts[group]]
        return all(held[other] > 1 for other in required.tolist() if self.counts[group, other] > 0)

"""Which rows show what a model was fitted on: the same file, nearly the same picture, the same patient.

A model has seen its training rows, and its validation rows too: they stopped its training and gave its thresholds.
Scores over such rows say nothing, so where a model is judged on new images they are left out, each with all of its
group: an image that a model has seen makes the other images of its patient seen as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medflow.duplicates import near_duplicate_groups
from medflow.records import Manifest
from medflow.split import merged_groups

FILE, PICTURE = "the same file as an image of the training", "nearly the same picture as one of the training"


@dataclass(frozen=True)
class Seen:
    """What tells the images that a model was fitted on."""

    images: int
    sha256: frozenset[str]
    phash: tuple[str, ...]
    """16 hex digits each."""
    groups: frozenset[str]
    """Names of patients or lesions, before and after groups were merged."""
    grouped_by: str

    def without_names(self) -> Seen:
        """The same, where a group's name among other images says nothing about these."""
        return replace(self, groups=frozenset())


def seen_in(train: Manifest, val: Manifest, ingested: Manifest) -> Seen:
    """What the rows of both parts are known by.

    ``ingested`` is the manifest that they were split from, before checks left rows out and joined groups: a group
    that was merged into another is known there by its own name, and so is one that lost its only image as a copy.
    """
    ids, files = (_both(train, val, name) for name in ("image_id", "sha256"))
    before = zip(*(ingested.column(name).tolist() for name in ("image_id", "sha256", "group")), strict=True)
    own = {group for image_id, sha256, group in before if group and (image_id in ids or sha256 in files)}
    # Where an image has no patient, its own id stands for one, which says nothing among other images.
    nameless = set(ingested.column("image_id").tolist())
    return Seen(
        images=len(train) + len(val),
        sha256=files,
        phash=tuple(sorted(_both(train, val, "phash"))),
        groups=frozenset((own | _both(train, val, "group")) - nameless),
        grouped_by=ingested.card.grouped_by,
    )


def seen_rows(rows: Manifest, seen: Seen, bits: int) -> np.ndarray:
    """Why each row is left out, object (N,) of str; None for a row that shows nothing that was seen.

    ``bits``: largest distance of two perceptual hashes that count as nearly the same picture.
    """
    reasons = np.full(len(rows), None, dtype=object)
    reasons[_named(rows, seen)] = f"the same {rows.card.grouped_by} as in the training"
    reasons[_near(rows.column("phash").tolist(), seen.phash, bits)] = PICTURE
    reasons[[name in seen.sha256 for name in rows.column("sha256").tolist()]] = FILE
    found = reasons != None  # noqa: E711 (element by element)
    groups = merged_groups(rows, bits)
    reasons[~found & np.isin(groups, np.unique(groups[found]))] = f"the same {rows.card.grouped_by} as such an image"
    return reasons


def _named(rows: Manifest, seen: Seen) -> np.ndarray:
    return np.array([name in seen.groups for name in rows.column("group").tolist()], dtype=bool)


def _near(own: Sequence[str | None], seen: Sequence[str], bits: int) -> np.ndarray:
    """bool (N,): the picture is near one that was seen, or near one that is, and so on."""
    clusters = near_duplicate_groups([*own, *seen], bits)
    return np.isin(clusters[: len(own)], clusters[len(own) :])


def _both(train: Manifest, val: Manifest, name: str) -> frozenset[str]:
    """What both parts have in a column of text, where it is known."""
    values = [*train.column(name).tolist(), *val.column(name).tolist()]
    return frozenset(value for value in values if value is not None)

"""Which images a model may be judged on: those that it was not fitted on.

A model has seen its training rows, and its validation rows too: they stopped its training and gave its thresholds.
Scores over such rows say nothing, and a model from an earlier split may have seen rows that are test rows now: the
settings of the split changed, or a cleaning rule, or what is known of groups. So what it has seen is left out, each
image with all of its group: one that a model has seen makes the other images of its patient seen as well.

``past_of`` is what the rows are known by. Rows of the same source are looked up by ``unseen_rows``, images from
elsewhere, whose ids mean nothing, by ``seen_rows``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from medflow.duplicates import near_duplicate_groups
from medflow.records import Manifest, Past, Unseen

FILE, PICTURE = "the same file as an image of the training", "nearly the same picture as one of the training"


def past_of(train: Manifest, val: Manifest, listed: Manifest) -> Past:
    """What a bundle learnt from (``train``) or was chosen and fitted on (``val``).

    ``listed`` is the manifest that both were taken from, before checks left rows out and joined groups: a group that
    was merged into another is known there by its own name, and so is one that lost its only image as a copy.
    """
    parts = (train, val)
    ids, files, merged = (_values(name, *parts) for name in ("image_id", "sha256", "group"))
    there = list(zip(*(listed.column(name).tolist() for name in ("image_id", "sha256", "group")), strict=True))
    own = {group for (image_id, _, _), group in zip(there, listed.groups().tolist(), strict=True) if image_id in ids}
    named = {group for image_id, sha256, group in there if group and (image_id in ids or sha256 in files)}
    # Where an image has no patient, its own id stands for one, which says nothing among other images.
    nameless = {image_id for image_id, _, _ in there}
    return Past(
        images=tuple(sorted(ids)),
        contents=tuple(sorted(files)),
        groups=tuple(sorted(merged | own)),
        names=tuple(sorted((merged | named) - nameless)),
        pictures=tuple(sorted(_values("phash", *parts))),
    )


def seen_rows(rows: Manifest, groups: np.ndarray, past: Past, bits: int) -> np.ndarray:
    """Why each image from elsewhere is left out, object (N,) of str; None for one that shows nothing that was seen.

    ``groups``: name of each row's group, object (N,), as ``split.merged_groups`` merges them. ``bits``: largest
    distance of two perceptual hashes that count as nearly the same picture.
    """
    names = frozenset(past.names)
    named = [name in names for name in rows.column("group").tolist()]
    return _reasons(rows, past, named, groups.tolist(), bits)


def unseen_rows(rows: Manifest, listed: Manifest, past: Past, bits: int) -> np.ndarray:
    """bool (N,): test rows of which the model saw nothing: no row of their group shares anything with its past.

    A row was seen where the past has its id, its bytes, a picture within ``bits`` of its own, or its group: as the
    parts name it (``rows``), as ``listed``, the manifest that they were taken from, names it, or by another listed
    image of that group that the past has, also one that has been left out since. One seen row takes its whole group.
    """
    images, contents, groups = frozenset(past.images), frozenset(past.contents), set(past.groups)
    own = dict(zip(listed.column("image_id").tolist(), listed.groups().tolist(), strict=True))
    for image_id, sha256 in zip(own, listed.column("sha256").tolist(), strict=True):
        if image_id in images or sha256 in contents:
            groups.add(own[image_id])
    whole = rows.column("group").tolist()
    named = [
        image_id in images or not groups.isdisjoint((group, own.get(image_id)))
        for image_id, group in zip(rows.column("image_id").tolist(), whole, strict=True)
    ]
    return np.array([reason is None for reason in _reasons(rows, past, named, whole, bits)], dtype=bool)


def unseen_of(rows: Manifest, kept: Manifest, past: Past) -> Unseen:
    """The figures of a restriction of test ``rows`` to those that are ``kept``."""
    return Unseen(
        unknown=past.unknown,
        test_rows=rows.digest(),
        test_images=len(rows),
        test_groups=len(_values("group", rows)),
        rows=kept.digest(),
        images=len(kept),
        groups=len(_values("group", kept)),
    )


def _reasons(rows: Manifest, past: Past, named: Iterable[bool], whole: list[str], bits: int) -> np.ndarray:
    """Why each row was seen, object (N,); ``named``: by its group, ``whole``: what a seen row takes with it."""
    reasons = np.full(len(rows), None, dtype=object)
    reasons[np.array(list(named), dtype=bool)] = f"the same {rows.card.grouped_by} as in the training"
    reasons[_like_seen_pictures(rows, past, bits)] = PICTURE
    contents = frozenset(past.contents)
    reasons[[sha256 in contents for sha256 in rows.column("sha256").tolist()]] = FILE
    touched = {group for group, reason in zip(whole, reasons.tolist(), strict=True) if reason is not None}
    for row, group in enumerate(whole):
        if reasons[row] is None and group in touched:
            reasons[row] = f"the same {rows.card.grouped_by} as such an image"
    return reasons


def _like_seen_pictures(rows: Manifest, past: Past, bits: int) -> np.ndarray:
    """bool (N,): the row's picture is a near-duplicate of one that was seen, perhaps by way of others."""
    cluster = near_duplicate_groups([*past.pictures, *rows.column("phash").tolist()], bits)
    return np.isin(cluster[len(past.pictures) :], cluster[: len(past.pictures)])


def _values(name: str, *parts: Manifest) -> set[str]:
    """What the parts have in a column of text, where it is known."""
    return {value for part in parts for value in part.column(name).tolist() if value is not None}

"""Which test rows a model may be judged on: those that it never learnt from.

A model from an earlier split may have been trained on rows that are test rows now: the settings of the split changed,
or a cleaning rule, or what is known of groups. On such rows it looks better than it is. What it learnt from is read
from its lineage: the training and validation rows that its version is linked to.
"""

from __future__ import annotations

import numpy as np

from medflow.duplicates import near_duplicate_groups
from medflow.records import Manifest, Past, Unseen


def past_of(train: Manifest, val: Manifest, listed: Manifest) -> Past:
    """What a bundle learnt from (``train``) or was chosen and fitted on (``val``).

    ``listed`` is the manifest that both were taken from: it has each image's own group, before groups were merged.
    """
    parts = (train, val)
    ids = _values("image_id", *parts)
    own = zip(listed.groups().tolist(), listed.column("image_id").tolist(), strict=True)
    return Past(
        images=tuple(sorted(ids)),
        contents=tuple(sorted(_values("sha256", *parts))),
        groups=tuple(sorted(_values("group", *parts) | {group for group, image_id in own if image_id in ids})),
        pictures=tuple(sorted(_values("phash", *parts))),
    )


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
    alike = _like_seen_pictures(rows, past, bits)
    columns = (rows.column(name).tolist() for name in ("image_id", "sha256", "group"))
    seen = [
        near or image_id in images or sha256 in contents or not groups.isdisjoint((group, own.get(image_id)))
        for near, image_id, sha256, group in zip(alike.tolist(), *columns, strict=True)
    ]
    touched = {group for group, was in zip(rows.column("group").tolist(), seen, strict=True) if was}
    return np.array([group not in touched for group in rows.column("group").tolist()], dtype=bool)


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


def _like_seen_pictures(rows: Manifest, past: Past, bits: int) -> np.ndarray:
    """bool (N,): the row's picture is a near-duplicate of one that was seen, perhaps by way of others."""
    cluster = near_duplicate_groups([*past.pictures, *rows.column("phash").tolist()], bits)
    return np.isin(cluster[len(past.pictures) :], cluster[: len(past.pictures)])


def _values(name: str, *parts: Manifest) -> set[str]:
    return {value for part in parts for value in part.column(name).tolist() if value is not None}

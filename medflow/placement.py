"""Where groups and images lay before, carried from one split of a dataset to the next.

An image is known by its group, its id and its bytes, since each of them may change: a table of patients comes or goes,
a folder is renamed, a file is replaced. Whichever is known counts, and the strictest role wins.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medflow.records import Manifest, Placement, Role, Split
from medflow.stratify import FREE

ROLES: tuple[Role, Role, Role] = ("train", "val", "test")
"""From the loosest to the strictest."""
TRAIN, VAL, TEST = range(3)


def placement_of(manifest: Manifest, parts: Split) -> Placement:
    """The placement that a later split starts from: the role of every image, and of its group before merging.

    Merged names alone would not do: a group whose link to the others is gone next time must be found too.
    """
    by_image: dict[str, Role] = {
        image_id: role
        for role, part in zip(ROLES, (parts.train, parts.val, parts.test), strict=True)
        for image_id in part.column("image_id").tolist()
    }
    columns = (manifest.groups(), manifest.column("image_id"), manifest.column("sha256"))
    rows = [row for row in zip(*(column.tolist() for column in columns), strict=True) if row[1] in by_image]
    return Placement(
        roles={group: by_image[image_id] for group, image_id, _ in rows},
        images={image_id: by_image[image_id] for _, image_id, _ in rows},
        contents={sha256: by_image[image_id] for _, image_id, sha256 in rows if sha256 is not None},
    )


def strictest(first: Placement, second: Placement) -> Placement:
    """What either knows; where both know something, the stricter role."""
    return Placement(
        roles=_strictest(first.roles, second.roles),
        images=_strictest(first.images, second.images),
        contents=_strictest(first.contents, second.contents),
        once_test=tuple(sorted({*first.once_test, *second.once_test})),
    )


def loosens(first: Placement, second: Placement) -> bool:
    """Whether ``first`` has something in a less strict part than ``second`` has it."""
    pairs = ((first.roles, second.roles), (first.images, second.images), (first.contents, second.contents))
    return any(
        ROLES.index(one[key]) < ROLES.index(other[key]) for one, other in pairs for key in one.keys() & other.keys()
    )


def once_test(part: Manifest) -> tuple[str, ...]:
    """What the rows of a test part are known by, sorted: the sha256 of each, or its id where that is unknown."""
    pairs = zip(part.column("sha256").tolist(), part.column("image_id").tolist(), strict=True)
    return tuple(sorted(sha256 or image_id for sha256, image_id in pairs))


def placed_rows(manifest: Manifest, placement: Placement) -> np.ndarray:
    """Roles that ``placement`` gives to each row, or ``FREE``, int64 (N, 4): by group, id (twice) and bytes.

    A row whose group was unknown when it was placed stands among the groups by its id.
    """
    groups, ids = manifest.groups().tolist(), manifest.column("image_id").tolist()
    digests = manifest.column("sha256").tolist()
    ways = ((groups, placement.roles), (ids, placement.roles), (ids, placement.images), (digests, placement.contents))
    return np.stack([_roles(keys, roles) for keys, roles in ways], axis=1)


def _roles(keys: list[str | None], roles: Mapping[str, Role]) -> np.ndarray:
    found = [None if key is None else roles.get(key) for key in keys]
    return np.array([FREE if role is None else ROLES.index(role) for role in found], dtype=np.int64)


def _strictest(first: Mapping[str, Role], second: Mapping[str, Role]) -> dict[str, Role]:
    merged = {**first}
    for key, role in second.items():
        if key not in merged or ROLES.index(role) > ROLES.index(merged[key]):
            merged[key] = role
    return merged

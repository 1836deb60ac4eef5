"""One column of groups from two tellers: the source (folders, a table) and the headers of DICOM files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medflow.datasets._layout import told
from medflow.datasets._spec import Row
from medflow.dicom.facts import DicomFacts
from medflow.duplicates import connected
from medflow.records import Finding

UNITED = "images of groups that are one patient by their DICOM headers, and one group now"
DISPUTED = (
    "images of groups that are one patient by their DICOM headers; groups are as the source tells them, so that a "
    "patient may be in more than one part"
)
HEADER_ALONE = (
    "images grouped by their DICOM header alone, where others are grouped by the source alone: one patient may have a "
    "group of either kind"
)


def groups_of(rows: Sequence[Row], headers: Mapping[str, DicomFacts]) -> tuple[list[str | None], tuple[Finding, ...]]:
    """The group of each row. ``headers`` by path.

    Where the source tells every image's group, it is taken at its word, and a finding counts where headers disagree.
    Where it tells some and headers tell others, names of both kinds that stand at one image are one group, and so on,
    transitively; it is called by the smallest name that the source tells, or else by the header's.
    """
    named = [headers[row.path].group if row.path in headers else None for row in rows]
    own = [row.group for row in rows]
    joined = _joined(own, named)
    moved = [row.path for row, group in zip(rows, joined, strict=True) if row.group not in (None, group)]
    if all(group is not None or name is None for group, name in zip(own, named, strict=True)):
        return own, told("group_disputed", DISPUTED, moved, "warning")
    ungrouped = any(group is not None and name is None for group, name in zip(own, named, strict=True))
    by_header = [
        row.path for row, group, name in zip(rows, joined, named, strict=True) if name is not None and group == name
    ]
    return joined, (
        *told("group_united", UNITED, moved, "warning"),
        *told("group_by_header", HEADER_ALONE, by_header if ungrouped else (), "warning"),
    )


def _joined(own: Sequence[str | None], named: Sequence[str | None]) -> list[str | None]:
    """For each row the best name of all that are linked to its names; None where it has none."""
    # Names of the source first, so that the smallest number of a component is its best name.
    names = sorted({name for name in own if name is not None})
    of_source = {name: place for place, name in enumerate(names)}
    names += sorted({name for name in named if name is not None})
    of_header = {name: len(of_source) + place for place, name in enumerate(names[len(of_source) :])}
    pairs = [(a, b) for a, b in zip(own, named, strict=True) if a is not None and b is not None]
    left = np.array([of_source[a] for a, _ in pairs], dtype=np.int64)
    right = np.array([of_header[b] for _, b in pairs], dtype=np.int64)
    component = connected(len(names), left, right)
    _, first = np.unique(component, return_index=True)
    best = [names[first[place]] for place in component]
    return [
        best[of_source[a]] if a is not None else best[of_header[b]] if b is not None else None
        for a, b in zip(own, named, strict=True)
    ]

"""Leave out what checks of severity `warning` found, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas

from medflow.checks.facts import Facts
from medflow.checks.rules import severity_of
from medflow.config.sections import ValidateConfig
from medflow.duplicates import connected
from medflow.records import Manifest

ONE_STAYS = ("duplicate", "near_duplicate")


def quarantine(manifest: Manifest, facts: Facts, failing: Mapping[str, np.ndarray], config: ValidateConfig) -> Manifest:
    """The rows that stay, in their order. ``failing`` maps a check to row numbers.

    A copy that is left out may be the only sign that two groups are one patient, so their groups are joined in
    what stays, under the smaller name. Blank images and the like, left out for what they are, join nothing.
    """
    clusters = {"duplicate": facts.copies, "near_duplicate": facts.near_copies}
    out = facts.frame["no_pixels"].notna().to_numpy().copy()
    for name, rows in failing.items():
        if severity_of(name, config) == "warning" and name not in (*ONE_STAYS, "mask_mismatched"):
            out[rows] = True
    sound = ~out
    leaving = [clusters[name] for name in ONE_STAYS if severity_of(name, config) == "warning" and name in failing]
    for cluster in leaving:
        out |= _all_but_first(cluster, out, manifest.column("image_id"))
    unfit = facts.frame["mask_misfit"] if config.mask_mismatched == "warning" else facts.frame["mask_error"]
    return _with_columns(manifest, _joined_groups(manifest, leaving, sound), unfit).take(np.flatnonzero(~out))


def _all_but_first(cluster: np.ndarray, out: np.ndarray, image_id: np.ndarray) -> np.ndarray:
    """bool (N,): rows of a cluster beside the one with the smallest image_id that is not already ``out``."""
    order = np.argsort(image_id.astype(str), kind="stable")
    order = order[~out[order]]
    _, first = np.unique(cluster[order], return_index=True)
    leave = np.zeros(len(cluster), dtype=bool)
    leave[order] = True
    leave[order[first]] = False
    return leave


def _joined_groups(manifest: Manifest, clusters: list[np.ndarray], sound: np.ndarray) -> np.ndarray:
    """Group of each row, (N,): groups whose ``sound`` rows share a cluster get the smallest name among them.

    An unknown group stays None, unless the row was joined with another.
    """
    group = manifest.groups().astype(str)
    names, own = np.unique(group, return_inverse=True)
    component = np.arange(len(names))
    for cluster in clusters:
        _, first, place = np.unique(cluster[sound], return_index=True, return_inverse=True)
        groups = component[own[sound]]
        component = connected(len(names), groups, groups[first[place]])[component]
    smallest = np.full(len(names), len(names))
    np.minimum.at(smallest, component, np.arange(len(names)))
    joined = names[smallest[component]][own]
    unknown = manifest.group_unknown() & (joined == group)
    joined = joined.astype(object)
    joined[unknown] = None
    return joined


def _with_columns(manifest: Manifest, group: np.ndarray, mask_error: pandas.Series) -> Manifest:
    import pyarrow

    table = manifest.table
    columns = {"group": group.tolist(), "mask_error": [None if pandas.isna(value) else value for value in mask_error]}
    for name, values in columns.items():
        array = pyarrow.array(values, type=pyarrow.string())
        table = table.set_column(table.column_names.index(name), name, array)
    return replace(manifest, table=table)

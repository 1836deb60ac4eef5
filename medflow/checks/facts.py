"""The frame that expectations run on: the manifest and a few columns worked out from several others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas

from medflow.config.sections import ValidateConfig
from medflow.duplicates import near_duplicate_groups
from medflow.records import DatasetCard, Manifest

ASPECT_TOLERANCE = 0.02
"""Relative difference of aspect ratios that rounding to whole pixels can explain."""


@dataclass(frozen=True)
class Facts:
    """``frame`` has one row an image, indexed 0 to N - 1, and the manifest's columns beside the derived ones:

    ``no_pixels`` why there are none; ``shorter_side`` pixels; ``copy_of``, ``conflicts_with`` and ``near_copy_of``
    the image_id of another; ``mask_misfit`` why a mask cannot be used; ``<head>.sum`` positive labels
    of an exclusive head, null where that is not known. Text columns are null where all is well.
    """

    frame: pandas.DataFrame
    copies: np.ndarray
    """Cluster of each row, int64 (N,): same bytes, no contradiction between labels."""
    near_copies: np.ndarray
    """Cluster of each row, int64 (N,): near-duplicates."""


def measure(manifest: Manifest, config: ValidateConfig) -> Facts:
    frame = manifest.to_pandas().reset_index(drop=True)
    near = near_duplicate_groups(manifest.column("phash").tolist(), config.near_duplicate_bits)
    frame["no_pixels"] = _no_pixels(frame)
    same_bytes, conflicting = _same_bytes(frame, _label_columns(manifest.card))
    copies = np.where(conflicting, 2 * len(frame) + np.arange(len(frame)), same_bytes)
    frame["shorter_side"] = frame[["width", "height"]].min(axis=1)
    frame["conflicts_with"] = _another(frame, same_bytes, conflicting)
    frame["copy_of"] = _first_of(frame, copies)
    frame["near_copy_of"] = _near_copy_of(frame, near)
    frame["mask_misfit"] = _mask_misfit(frame)
    for head in manifest.card.heads:
        if head.kind == "exclusive":
            frame[f"{head.name}.sum"] = _known_sum(frame[list(head.columns())])
    return Facts(frame=frame, copies=copies, near_copies=near)


def _label_columns(card: DatasetCard) -> list[str]:
    return [name for head in card.heads for name in head.columns()]


def _no_pixels(frame: pandas.DataFrame) -> pandas.Series:
    reason = frame["error"].astype(object)
    unstored = frame["pixel_row"].isna() & reason.isna()
    return reason.where(~unstored, "no pixels were stored")


def _same_bytes(frame: pandas.DataFrame, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of equal bytes, int64 (N,), and bool (N,): its labels contradict (0 and 1; unknown agrees with both).

    Files that are no images are alone: two that hold the same error page say nothing about patients or labels.
    """
    known = (frame["sha256"].notna() & frame["no_pixels"].isna()).to_numpy()
    cluster = np.arange(len(frame))
    cluster[known] = len(frame) + frame.loc[known, "sha256"].factorize()[0]
    twice = np.isin(cluster, np.flatnonzero(np.bincount(cluster) > 1))
    conflicting = np.zeros(len(frame), dtype=bool)
    if labels and twice.any():
        by_file = frame.loc[twice, labels].groupby(cluster[twice])
        conflicting[twice] = (by_file.transform("max") > by_file.transform("min")).any(axis=1)
    return cluster, conflicting


def _by_id(frame: pandas.DataFrame) -> np.ndarray:
    """Rows in the order of their image_id, int64 (N,)."""
    return np.argsort(frame["image_id"].astype(str).to_numpy(dtype=str), kind="stable")


def _first_rows(frame: pandas.DataFrame, cluster: np.ndarray) -> np.ndarray:
    """For each row, the row with the smallest image_id in its cluster, int64 (N,)."""
    order = _by_id(frame)
    _, first, place = np.unique(cluster[order], return_index=True, return_inverse=True)
    rows = np.empty(len(frame), dtype=np.int64)
    rows[order] = order[first[place]]
    return rows


def _first_of(frame: pandas.DataFrame, cluster: np.ndarray) -> pandas.Series:
    """The image that stands for a row's cluster, null where it is the row itself."""
    first = _first_rows(frame, cluster)
    return frame["image_id"].astype(object).iloc[first].set_axis(frame.index).where(first != frame.index, None)


def _another(frame: pandas.DataFrame, cluster: np.ndarray, among: np.ndarray) -> pandas.Series:
    """An image of the same cluster for rows ``among``: the first one, for the first one the last; null elsewhere."""
    ids = frame["image_id"].astype(object)
    first = _first_of(frame, cluster)
    last = ids.groupby(cluster).transform(lambda of: max(of, key=str)) if among.any() else ids
    return first.fillna(last).where(among, None)


def _near_copy_of(frame: pandas.DataFrame, near: np.ndarray) -> pandas.Series:
    """The first of a cluster of near-duplicates, null for itself, for its exact copies and for copies of others."""
    first = _first_rows(frame, near)
    sha256 = frame["sha256"].astype(object)
    other = (sha256.to_numpy() != sha256.to_numpy()[first]) & frame["copy_of"].isna().to_numpy()
    return (
        frame["image_id"].astype(object).iloc[first].set_axis(frame.index).where(other & (first != frame.index), None)
    )


def _mask_misfit(frame: pandas.DataFrame) -> pandas.Series:
    """Why the mask cannot be laid over the image, null where it can, where there is none, or no image to lay it on."""
    aspect, mask_aspect = frame["width"] / frame["height"], frame["mask_width"] / frame["mask_height"]
    apart = (np.abs(aspect / mask_aspect - 1) > ASPECT_TOLERANCE) & frame["mask_error"].isna()
    sizes = frame.loc[apart, ["mask_width", "mask_height", "width", "height"]].astype(int)
    reason = frame["mask_error"].astype(object)
    reason[apart] = [f"mask of {a}x{b} does not fit the image of {c}x{d}" for a, b, c, d in sizes.to_numpy().tolist()]
    return reason


def _known_sum(labels: pandas.DataFrame) -> pandas.Series:
    """Positive labels of each row; null where some are unknown and what is known is possible."""
    total = labels.sum(axis=1, skipna=True).astype(float)
    return total.where(labels.notna().all(axis=1) | (total > 1))

"""A dataset as a table, its split, and what a bundle said of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from medflow.errors import DataError, SplitError
from medflow.records.base import Whole, content, digest_of
from medflow.records.dataset import DatasetCard, HeadSpec, Source
from medflow.records.findings import Finding
from medflow.records.model import Threshold

if TYPE_CHECKING:
    import pandas
    import pyarrow


#: Columns that every manifest has, beside one int8 column ``<head>.<label>`` per label (1, 0, null).
#: Arrow types by name, so that importing this module needs no pyarrow.
MANIFEST_COLUMNS: Mapping[str, str] = {
    "image_id": "string",  # unique
    "path": "string",  # relative to the data root, POSIX
    "mask_path": "string",  # likewise, null where the image has none
    "sha256": "string",  # of the file's bytes, null where unreadable
    "group": "string",  # patient or lesion; where a dataset has none, the image's own id; null if unknown
    "text": "string",
    "official_split": "string",  # train, val, test, or null
    "source": "string",
    "age": "float32",  # years
    "sex": "string",  # F, M or null
    "view": "string",
    "site": "string",
    "boxes": "string",  # JSON list of {label, x, y, width, height} in pixels of the original, or null
    "width": "int32",  # of the original, pixels
    "height": "int32",
    "mode": "string",  # PIL mode of the original: L, RGB, P, RGBA, I;16 …
    "bytes": "int64",
    "mean": "float32",  # of the decoded gray image, 0 to 255
    "std": "float32",
    "blur": "float32",  # variance of the Laplacian
    "phash": "string",  # 16 hex digits, 64-bit perceptual hash
    "mask_width": "int32",
    "mask_height": "int32",
    "mask_fraction": "float32",  # share of mask pixels that are set, 0 to 1
    "error": "string",  # why the image has no pixels, or null
    "mask_error": "string",  # why its mask has none, or null
    "pixel_row": "int64",  # row in every store of Pixels, null where there is an error
}


@dataclass(frozen=True)
class Manifest(Whole):
    """A dataset (or one part of its split) as a table: one row an image."""

    card: DatasetCard
    table: pyarrow.Table
    source: Source | None = None
    findings: tuple[Finding, ...] = ()
    """What the listing found odd, such as stray files: told by `validate`, not part of the digest."""

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column as numpy; strings and nullable columns as objects with None."""
        array = self.table.column(name)
        if array.null_count or not _is_number(array.type):
            return np.array(array.to_pylist(), dtype=object)
        return array.to_numpy()

    def to_pandas(self) -> pandas.DataFrame:
        return self.table.to_pandas()

    def take(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """The given rows, in the given order."""
        import pyarrow

        indices = pyarrow.array(np.asarray(rows, dtype=np.int64))
        return replace(self, table=self.table.take(indices))

    def pixel_rows(self) -> np.ndarray:
        """Rows of the pixel store, int64 (N,). Raises DataError where an image has no pixels."""
        column = self.table.column("pixel_row")
        if column.null_count:
            raise DataError(
                f"{column.null_count} of {len(self)} images have no pixels",
                hint="run `validate` first: it quarantines images that could not be decoded",
            )
        return column.to_numpy().astype(np.int64)

    def group_unknown(self) -> np.ndarray:
        """bool (N,): the dataset has groups, and the image's is not known."""
        return self.table.column("group").is_null().to_numpy()

    def groups(self) -> np.ndarray:
        """Group of each row, object (N,); an image whose group is unknown is one of its own, named by its id."""
        return np.where(self.group_unknown(), self.column("image_id"), self.column("group"))

    def targets(self, head: HeadSpec) -> np.ndarray:
        """Labels of a head, float32 (N, labels): 1, 0, or NaN for unknown."""
        columns = [self.table.column(name).to_numpy(zero_copy_only=False) for name in head.columns()]
        return np.stack([column.astype(np.float32) for column in columns], axis=1)

    def has_mask(self) -> np.ndarray:
        """bool (N,): the image has a mask that was read."""
        frame = self.table.select(["mask_path", "mask_error"]).to_pylist()
        return np.array([row["mask_path"] is not None and row["mask_error"] is None for row in frame], dtype=bool)

    def reports(self) -> tuple[str | None, ...]:
        """Each image's report, None where there is none."""
        return tuple(self.table.column("text").to_pylist())

    def digest(self) -> str:
        """sha256 over card and rows; independent of Arrow's chunking and of where the data lie."""
        rows = hashlib.sha256()
        for name in sorted(self.table.column_names):
            rows.update(name.encode())
            rows.update(json.dumps(self.table.column(name).to_pylist(), ensure_ascii=False).encode())
        return digest_of({"card": content(self.card), "rows": rows.hexdigest()})


def _is_number(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind))


@dataclass(frozen=True)
class Split:
    """Three parts of a manifest that share no group. Raises SplitError otherwise."""

    train: Manifest
    val: Manifest
    test: Manifest

    def __post_init__(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for column in ("group", "image_id", "sha256"):
            self._refuse_overlap(column, {role: set(part.column(column)) - {None} for role, part in parts.items()})

    @staticmethod
    def _refuse_overlap(column: str, seen: Mapping[str, set[str]]) -> None:
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = seen[first] & seen[second]
            if shared:
                raise SplitError(
                    f"{len(shared)} {column} values are in both {first} and {second}, for example {min(shared)!r}",
                    hint="a group must lie in one part only; re-split instead of using this placement",
                )


@dataclass(frozen=True)
class Predictions(Whole):
    """What a bundle said about some rows, beside what was true.

    ``probabilities[head]`` is float32 (N, labels) after temperature, 0 to 1; for a mask head it is
    absent, since per-image Dice and IoU are kept instead in ``mask_scores[head]``, float32 (N, 2)
    with NaN where the image has no mask. ``targets[head]`` is float32 (N, labels), NaN for unknown.
    """

    bundle_digest: str
    rows_digest: str
    heads: tuple[HeadSpec, ...]
    image_id: np.ndarray
    group: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    mask_scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()
    """The bundle's own, so that decisions can be compared without the bundle."""

    def __len__(self) -> int:
        return len(self.image_id)

    def digest(self) -> str:
        state = hashlib.sha256()
        for name in (self.image_id, self.group):
            state.update(json.dumps([str(value) for value in name]).encode())
        for arrays in (self.probabilities, self.targets, self.mask_scores):
            for head in sorted(arrays):
                state.update(head.encode())
                state.update(np.ascontiguousarray(arrays[head], dtype=np.float32).tobytes())
        heads = [content(head) for head in self.heads]
        cuts = [content(threshold) for threshold in self.thresholds]
        return digest_of({"heads": heads, "rows": self.rows_digest, "arrays": state.hexdigest(), "thresholds": cuts})

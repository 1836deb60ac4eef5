"""What a dataset declares of itself, and where its images came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from medflow.records.base import BESIDE, Record


class HeadSpec(Record):
    """One thing that a dataset asks of a model."""

    kind: Literal["exclusive", "independent", "mask"]
    name: str
    """Lower-case identifier, such as ``diagnosis`` or ``lung``; names the output and the label columns."""
    labels: tuple[str, ...]
    """Class names in the order of the output channels; a mask head has exactly one."""

    def columns(self) -> tuple[str, ...]:
        """The manifest's label columns of this head, ``<head>.<label>``; none for a mask head."""
        return () if self.kind == "mask" else tuple(f"{self.name}.{label}" for label in self.labels)


NEAR_DUPLICATES = "near-duplicates"


class DatasetCard(Record):
    """What a dataset declares of itself. The same wherever its files lie."""

    name: str
    title: str
    heads: tuple[HeadSpec, ...]
    channels: Literal[1, 3]
    """Channels kept in the pixel store: 1 for radiographs, 3 for photographs."""
    grouped_by: str
    """What makes two images one group: ``patient``, ``lesion``, or ``near-duplicates`` where nothing is known."""
    metadata: str = ""
    """Name of a table that the archive lacks and ``--metadata`` brings, such as one of groups; empty for none."""
    kaggle: str | None = None
    """``owner/dataset`` on Kaggle."""
    modality: str = ""
    licence: str = ""
    citation: str = ""
    limits: str = ""
    """What a reader of results must know about this dataset, in one or two sentences."""

    def expects_groups(self) -> bool:
        """Every image is somebody's or something's, so that one whose group is unknown may leak into another part."""
        return self.grouped_by != NEAR_DUPLICATES

    def label_head(self) -> HeadSpec | None:
        return next((head for head in self.heads if head.kind != "mask"), None)

    def mask_head(self) -> HeadSpec | None:
        return next((head for head in self.heads if head.kind == "mask"), None)


class Generated(Record):
    """What to generate where a source is no archive but an offline twin."""

    images: int
    seed: int = 0
    planted_faults: bool = False


class Source(Record):
    """Where images came from this time, as ``resolve`` saw the world."""

    kind: Literal["kaggle", "folder", "zip", "s3", "generated"]
    fingerprint: str
    """Changes when the source does: Kaggle's version, or a digest over names, sizes and times (in a bucket, ETags)."""
    uri: Annotated[str, BESIDE] = ""
    """Kaggle handle, the folder or archive as given, or ``s3://bucket/prefix``."""
    version: Annotated[str, BESIDE] = ""
    """Kaggle's version number as text; empty where the source has none. Never invented."""
    generated: Generated | None = None
    beside: str = ""
    """Digest of files outside of the source that the dataset's listing reads; empty where it reads none."""
    metadata: str = ""
    """sha256 of the file given with ``--metadata``, of its name, size and ETag in a bucket; empty for none."""
    metadata_uri: Annotated[str, BESIDE] = ""
    """Where that file lies: a path, or ``s3://bucket/key``."""


Role = Literal["train", "val", "test"]


class Placement(Record):
    """Where groups and images lie already, which ``split`` starts from. Empty for a source not yet split.

    An image is known by its group, by its id and by its bytes: any of them may be another, or unknown, the next time.
    """

    roles: Mapping[str, Role] = Field(default_factory=dict)
    """By group."""
    images: Mapping[str, Role] = Field(default_factory=dict)
    """By image id."""
    contents: Mapping[str, Role] = Field(default_factory=dict)
    """By the sha256 of the file's bytes."""
    once_test: tuple[str, ...] = ()
    """sha256, or ids where that is unknown, of the images that were test when the dataset was last split by other
    settings. They keep nothing, and where they go now is told."""
    remembered: Annotated[Placement | None, BESIDE] = None
    """Where everything lay in all runs before, where ``split`` is given less so that its result stays what it was."""


class Challenge(Record):
    """The stage that the candidate challenges, and what holds it now."""

    stage: str
    model_version: str | None = None
    """Version of the dataset's model that holds the stage, or None."""
    package_digest: str | None = None

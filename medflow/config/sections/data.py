"""From a source to three sets of rows: `source`, `ingest`, `validate`, `split`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Fraction, Positive, Section

Severity = Literal["error", "warning", "info", "off"]


class SourceConfig(Section):
    kind: Literal["kaggle", "folder", "zip", "s3", "generated"] = "kaggle"
    path: str | None = None
    """Folder, .zip, or s3://BUCKET/PREFIX of a folder or archive; `--source` sets kind and path together.

    A bucket is read with the artifact store's credentials where that is an S3 store, else with AWS_* variables.
    """
    metadata: str | None = None
    """A table that the archive lacks, such as one that tells which images show one lesion; `--metadata` sets it.

    A path, or s3://BUCKET/KEY.
    """
    version: str = "latest"
    """Kaggle's version number, or `latest`: resolved at each run and recorded."""
    images: int = Field(600, ge=24, le=1_000_000)
    """Images to generate where kind is `generated`."""
    seed: int = 0
    """Seed of what is generated."""
    planted_faults: bool = False
    """Generate broken files, duplicates and leaks among the images."""


class IngestConfig(Section):
    fit: Literal["stretch", "pad"] = "stretch"
    """How an image meets the square frame: `stretch` fills it, `pad` keeps the aspect ratio."""
    extra_sizes: tuple[int, ...] = ()
    """Sizes stored beside those that the models name, such as an older production model's."""
    max_pixels: int = Field(100_000_000, gt=0)
    """An image that declares more pixels than this is not decoded."""
    shards: int = Field(1, ge=1, le=256)
    """Steps that share the decoding, each in a pod of its own on a cluster; the result is the same bytes. On one
    machine 1 is best: its cores are used already, and every shard fetches an archive or twin for itself."""


class ValidateConfig(Section):
    unreadable: Severity = "warning"
    blank: Severity = "warning"
    tiny: Severity = "warning"
    duplicate: Severity = "warning"
    """The same bytes twice with the same labels; with different labels it is `label_conflict`."""
    near_duplicate: Severity = "info"
    label_conflict: Severity = "error"
    """The same bytes under different labels."""
    label_impossible: Severity = "error"
    """A label outside the dataset's list, two classes where one is possible, or none."""
    mask_missing: Severity = "info"
    mask_empty: Severity = "info"
    mask_mismatched: Severity = "warning"
    """Mask and image differ in aspect ratio, or the mask cannot be read: the mask is not used."""
    metadata: Severity = "info"
    """Age, sex or view outside what is possible."""
    blank_std: Positive = 3.0
    """An image with a gray standard deviation (0 to 255) below this is blank."""
    tiny_pixels: int = Field(64, gt=0)
    """An image whose shorter side is below this is tiny."""
    near_duplicate_bits: int = Field(3, ge=0, le=16)
    """Two images whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates."""
    max_quarantined: Fraction = 0.2
    """Stop where more than this share of the images would be left out."""


class SplitConfig(Section):
    seed: int = 0
    train: Fraction = 0.70
    val: Fraction = 0.15
    test: Fraction = 0.15
    official: bool = False
    """Use the dataset's own lists; val is taken from its training part, by group."""
    near_duplicate_bits: int = Field(3, ge=0, le=16)
    """Near-duplicates (see `validate`) count as one group; 0 joins equal hashes only."""
    allow_missing_groups: bool = False
    """Go on where patients or lesions should be known and are not: near-duplicates alone are then kept together."""

    @model_validator(mode="after")
    def _adds_up(self) -> SplitConfig:
        if abs(self.train + self.val + self.test - 1.0) > 1e-9:
            raise ValueError(f"train, val and test add up to {self.train + self.val + self.test:g}, expected 1")
        if min(self.train, self.val, self.test) <= 0:
            raise ValueError("train, val and test must each be above 0")
        return self

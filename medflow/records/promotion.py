"""A package, the one it challenges, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medflow.records.base import BESIDE, Record, Whole, digest_of
from medflow.records.dataset import Challenge
from medflow.records.model import Bundle


@dataclass(frozen=True)
class Package(Whole):
    """A Bento in a folder: ``<name>.bento`` and ``package.json``."""

    root: Path
    facts: PackageFacts

    FACTS = "package.json"

    def digest(self) -> str:
        return self.facts.digest()

    @property
    def bento(self) -> Path:
        return self.root / self.facts.file

    def files(self) -> tuple[Path, ...]:
        return (self.root / self.FACTS, self.bento)


class PackageFacts(Record):
    tag: str
    """Bento tag, ``<dataset>:<first 12 of content_digest>``."""
    file: str
    content_digest: str
    """Over the bundle and the service's source; the same content has the same tag."""
    bundle_digest: str
    bytes: Annotated[int, BESIDE]
    bento_sha256: Annotated[str, BESIDE]


class Past(Record):
    """The rows that a bundle learnt from or was fitted on, by all that they may be known again by; each sorted."""

    images: tuple[str, ...] = ()
    """Ids."""
    contents: tuple[str, ...] = ()
    """sha256 of the files."""
    groups: tuple[str, ...] = ()
    """As the images' own, and as merged; an image without one is a group of its own, named by its id."""
    names: tuple[str, ...] = ()
    """Those of them that name a patient or lesion, and so mean the same among images from elsewhere."""
    pictures: tuple[str, ...] = ()
    """Perceptual hashes."""
    unknown: str = ""
    """Why nothing of it is known; empty where it is."""

    def without_names(self) -> Past:
        """The same, where a patient's name among other images says nothing about these."""
        return self.model_copy(update={"names": ()})


class Unseen(Record):
    """On how much of the test part an incumbent may be judged: rows of groups that it learnt nothing from."""

    test_rows: str
    """Digest of the test rows."""
    test_images: int
    test_groups: int
    rows: str
    """Digest of those of them that are left."""
    images: int
    groups: int
    unknown: str = ""
    """Why it is not known what the incumbent learnt from, so that no row counts as unseen; empty where it is."""


NOT_TOLD = Past(unknown="its lineage was not read")


@dataclass(frozen=True)
class Incumbent(Whole):
    """The bundle that holds the stage to challenge; ``bundle`` is None where none does, or the candidate itself.

    The bundle and its past count in the digest, since they decide its evaluation; the challenge travels beside.
    """

    challenge: Challenge
    bundle: Bundle | None = None
    past: Past = NOT_TOLD
    """What the bundle learnt from. Unknown until it is said: an unknown past is not an innocent one."""

    def digest(self) -> str:
        return digest_of([self.bundle.digest(), self.past.digest()] if self.bundle else None)


class Comparison(Record):
    """Paired comparison of candidate and incumbent on the same rows."""

    head: str
    label: str
    metric: str
    candidate: float
    incumbent: float
    difference: float
    low: float
    high: float
    margin: float
    n: int
    groups: int


class Recorded(Record):
    """Where a run was written down: the names by which ZenML, MLflow and the user know it."""

    model: str
    """``NAME@VERSION``."""
    run_id: str
    mlflow_run_id: str
    content_digest: str


class Promotion(Record):
    promoted: bool
    stage: str
    reasons: tuple[str, ...]
    candidate: str
    """Digest of the candidate's package content."""
    incumbent: str | None
    comparisons: tuple[Comparison, ...] = ()
    unseen: Unseen | None = None
    """On which test rows the two were compared; None where there was nothing to compare with."""

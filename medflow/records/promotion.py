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


@dataclass(frozen=True)
class Incumbent(Whole):
    """The bundle that holds the stage to challenge; ``bundle`` is None where none does, or the candidate itself.

    Only the bundle counts in the digest, since only it is evaluated; the challenge travels beside.
    """

    challenge: Challenge
    bundle: Bundle | None = None

    def digest(self) -> str:
        return digest_of(self.bundle.digest() if self.bundle else None)


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

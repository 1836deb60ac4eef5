"""What the platform tells the command line: frozen records, printed as tables or as JSON."""

from __future__ import annotations

from datetime import datetime

from medflow.records import Promotion, Record, Score


class StepOutcome(Record):
    name: str
    cached: bool
    seconds: float
    status: str
    made: str = ""
    """What the step made, in a few words."""


class RunOutcome(Record):
    run_id: str
    name: str
    dataset: str
    status: str
    """``completed`` or ``failed``."""
    steps: tuple[StepOutcome, ...]
    metrics: tuple[Score, ...] = ()
    """On test rows."""
    model: str = ""
    """``NAME@VERSION`` as ``serve`` and ``predict`` take it; empty where the run failed."""
    promotion: Promotion | None = None
    seconds: float = 0.0


class RunSummary(Record):
    run_id: str
    name: str
    dataset: str
    status: str
    started: datetime
    seconds: float | None
    steps: int
    cached: int
    model: str = ""
    pods: str = ""
    """Where logs and events of a cluster run's pods are kept."""


class ModelVersion(Record):
    name: str
    version: str
    stages: tuple[str, ...]
    created: datetime
    run_id: str
    package_digest: str
    variant: str
    metrics: tuple[Score, ...] = ()

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Damage(Record):
    """One stored artifact that is not what was written."""

    artifact: str
    version: str
    uri: str
    problem: str
    step: str = ""


class Verified(Record):
    artifacts: int
    bytes: int
    damaged: tuple[Damage, ...]


class DemoOutcome(Record):
    run: RunOutcome
    served: str
    answer: str
    """The service's reply to one image, as JSON."""
    commands: tuple[str, ...]
    """What to type next."""

"""What the checks found."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medflow.records.base import Record


class Finding(Record):
    """The outcome of one check that did not pass."""

    check: str
    severity: Literal["error", "warning", "info"]
    message: str
    count: int
    examples: tuple[str, ...] = Field(default=(), max_length=5)


class Findings(Record):
    findings: tuple[Finding, ...] = ()
    images: int = 0
    """Images looked at."""
    quarantined: int = 0
    """Images left out of what follows."""

    def of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity == severity)

"""Check every row; stop, quarantine or tell."""

from __future__ import annotations

from typing import Annotated

from zenml import step
from zenml.types import HTMLString

from medflow.config.sections import ValidateConfig
from medflow.records import Findings, Manifest


@step
def validate(
    manifest: Manifest, config: ValidateConfig
) -> tuple[Annotated[Manifest, "valid"], Annotated[Findings, "findings"], Annotated[HTMLString, "validation_page"]]:
    from medflow import checks

    checked = checks.check(manifest, config)
    return checked.kept, checked.findings, HTMLString(checked.page)

"""Three parts that share no patient, lesion or near-duplicate."""

from __future__ import annotations

from typing import Annotated

from zenml import step
from zenml.types import HTMLString

from medflow.config.sections import SplitConfig
from medflow.records import Manifest, Placement


@step
def split(
    valid: Manifest, placement: Placement, config: SplitConfig
) -> tuple[
    Annotated[Manifest, "train"],
    Annotated[Manifest, "val"],
    Annotated[Manifest, "test"],
    Annotated[HTMLString, "balance_page"],
]:
    from medflow import split as splitting
    from medflow.report import parting

    parts = splitting.split(valid, placement, config)
    return parts.train, parts.val, parts.test, HTMLString(parting.split_page(parts))

"""The best of the trained models, by validation rows."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import SelectConfig
from medflow.records import Bundle, Choice, Evaluation


@step
def select(
    bundles: list[Bundle], evaluations: list[Evaluation], config: SelectConfig
) -> tuple[Annotated[Bundle, "selected"], Annotated[Choice, "selection"]]:
    from medflow import choose as choosing

    selection = choosing.select(evaluations, config)
    return choosing.chosen_bundle(bundles, selection), selection

"""The variant to ship, by validation rows: the fastest that loses no more than allowed."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import ChooseConfig
from medflow.records import Bundle, Choice, Evaluation


@step
def choose(
    bundles: list[Bundle], evaluations: list[Evaluation], config: ChooseConfig
) -> tuple[Annotated[Bundle, "chosen"], Annotated[Choice, "choice"]]:
    from medflow import choose as choosing

    # The first is the uncompressed graph, which the others would replace.
    choice = choosing.choose(evaluations[0], evaluations[1:], config)
    return choosing.chosen_bundle(bundles, choice), choice

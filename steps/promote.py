"""Candidate against incumbent on test rows that are new to both. Never cached."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import PromoteConfig
from medflow.records import Challenge, Evaluation, Package, Predictions, Promotion, Unseen


@step(enable_cache=False)
def promote(
    package: Package,
    evaluation: Evaluation,
    predictions: Predictions,
    incumbent_evaluation: Evaluation,
    incumbent_predictions: Predictions,
    unseen: Unseen,
    challenge: Challenge,
    config: PromoteConfig,
) -> Annotated[Promotion, "promotion"]:
    from medflow import promote as promoting

    present = bool(incumbent_evaluation.scores)
    return promoting.promote(
        evaluation, predictions,
        incumbent_evaluation if present else None, incumbent_predictions if present else None,
        package.facts, challenge, config, unseen,
    )  # fmt: skip

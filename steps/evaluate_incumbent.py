"""The model in production, on the same test rows as the candidate; nothing where there is none."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import EvaluateConfig
from medflow.records import Evaluation, Incumbent, Manifest, Pixels, Predictions


@step
def evaluate_incumbent(
    incumbent: Incumbent, rows: Manifest, pixels: Pixels, config: EvaluateConfig
) -> tuple[Annotated[Evaluation, "incumbent_evaluation"], Annotated[Predictions, "incumbent_predictions"]]:
    from medflow import evaluate as evaluation

    evaluated = evaluation.evaluate_incumbent(incumbent, rows, pixels, config)
    return evaluated.evaluation, evaluated.predictions

"""The model in production, on the test rows that it never learnt from; nothing where there is none."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import EvaluateConfig
from medflow.records import Evaluation, Incumbent, Manifest, Pixels, Predictions, Unseen


@step
def evaluate_incumbent(
    incumbent: Incumbent, rows: Manifest, manifest: Manifest, pixels: Pixels, config: EvaluateConfig, bits: int
) -> tuple[
    Annotated[Evaluation, "incumbent_evaluation"],
    Annotated[Predictions, "incumbent_predictions"],
    Annotated[Unseen, "unseen"],
]:
    from medflow import evaluate as evaluation

    heard = evaluation.evaluate_incumbent(incumbent, rows, manifest, pixels, config, bits=bits)
    return heard.evaluation, heard.predictions, heard.unseen

"""One bundle on one part of the split. The same step for every variant and for validation and test."""

from __future__ import annotations

from typing import Annotated, Literal

from zenml import step
from zenml.types import HTMLString

from medflow.config.sections import EvaluateConfig
from medflow.records import Bundle, Evaluation, Manifest, Pixels, Predictions


@step
def evaluate(
    bundle: Bundle, rows: Manifest, pixels: Pixels, config: EvaluateConfig, role: Literal["val", "test"]
) -> tuple[
    Annotated[Evaluation, "evaluation"],
    Annotated[Predictions, "predictions"],
    Annotated[HTMLString, "samples_page"],
]:
    from medflow import evaluate as evaluation
    from medflow.report import samples

    evaluated = evaluation.evaluate(bundle, rows, pixels, config, role)
    page = samples.samples_page(evaluation.samples(bundle, rows, pixels))
    return evaluated.evaluation, evaluated.predictions, HTMLString(page)

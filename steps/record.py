"""Write down what this run made: model version, stage, MLflow run and alias. Never cached."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.records import Evaluation, Package, Promotion, Recorded


@step(enable_cache=False)
def record(
    dataset: str, package: Package, evaluation: Evaluation, promotion: Promotion
) -> Annotated[Recorded, "recorded"]:
    from medflow.platform import recording

    return recording.record(dataset, package.facts, evaluation, promotion)

"""The files of a pipeline run that MLflow keeps on its parent run: its settings, the chosen model, test pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zenml.models import PipelineRunResponse

from medflow.platform import trackers
from medflow.records import Bundle, Evaluation, HeadSpec, Predictions
from medflow.report import curves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow import MlflowClient

    from medflow.report.figure import Figure


def send_config(mlflow: MlflowClient, parent: str, run: PipelineRunResponse) -> None:
    """The run's settings as ``config.yaml``, which `medflow run` takes."""
    text = run.config.extra.get(trackers.CONFIG)
    if text:  # a run that another version of medflow started carries none
        send(mlflow, parent, None, {"config.yaml": str(text).encode()})


def send_model(mlflow: MlflowClient, parent: str, run: PipelineRunResponse) -> None:
    """The chosen graph and its card to ``model``, ROC and confusion on test rows to ``model/test``."""
    bundle: Bundle = run.steps["choose"].outputs["chosen"][0].load()
    tested = run.steps["evaluate_test"].outputs
    evaluation: Evaluation = tested["evaluation"][0].load()
    predictions: Predictions = tested["predictions"][0].load()
    pictures = {
        f"{figure.name}.png": figure.png for figure in _test_figures(evaluation, predictions, bundle.card.heads)
    }
    send(mlflow, parent, "model/test", pictures)
    for path in bundle.files():
        if path != bundle.golden:  # it holds images of the hospital
            mlflow.log_artifact(parent, str(path), "model")


def send(mlflow: MlflowClient, parent: str, folder: str | None, files: Mapping[str, bytes]) -> None:
    """Give bytes by file name to a folder of a run, None for its top."""
    with tempfile.TemporaryDirectory(prefix="medflow-") as work:
        for name, data in files.items():
            path = Path(work) / name
            path.write_bytes(data)
            mlflow.log_artifact(parent, str(path), folder)


def _test_figures(evaluation: Evaluation, predictions: Predictions, heads: Sequence[HeadSpec]) -> Iterator[Figure]:
    for head in heads:
        if head.kind != "mask":
            yield curves.roc(predictions, head)
        if head.name in evaluation.confusion:
            yield curves.confusion_counts(evaluation.confusion[head.name], head)

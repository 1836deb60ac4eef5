"""MLflow's model registry: one version for one content, and an alias for each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medflow.platform import trackers
from medflow.progress import say
from medflow.records import PackageFacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

PACKAGE_TAG = "medflow.package"
"""Tag of a model version, and of a parent run: the content digest of its package."""


def is_registered(mlflow: MlflowClient, dataset: str, content_digest: str) -> bool:
    """Whether the dataset's registered model has a version of this content."""
    return _registered(mlflow, dataset, content_digest) is not None


def register(mlflow: MlflowClient, dataset: str, parent: str, facts: PackageFacts) -> None:
    """A version of the dataset's registered model for this content, unless there is one."""
    if not mlflow.search_registered_models(f"name = '{dataset}'"):
        mlflow.create_registered_model(dataset)
    if not is_registered(mlflow, dataset, facts.content_digest):
        mlflow.create_model_version(
            dataset, source=f"runs:/{parent}/model", run_id=parent, tags={PACKAGE_TAG: facts.content_digest}
        )


def set_alias(dataset: str, stage: str, content_digest: str) -> None:
    """Move MLflow's alias of a stage to the version of this content."""
    mlflow = trackers.client()
    version = _registered(mlflow, dataset, content_digest)
    if version is None:
        say(f"warning: MLflow's registry has no version of {dataset} with this content; its alias {stage} stays")
        return
    mlflow.set_registered_model_alias(dataset, stage, version)


def _registered(mlflow: MlflowClient, dataset: str, content_digest: str) -> str | None:
    found = mlflow.search_model_versions(f"name = '{dataset}'")
    return next((str(item.version) for item in found if item.tags.get(PACKAGE_TAG) == content_digest), None)

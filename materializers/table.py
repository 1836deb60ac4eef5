"""Manifest and Predictions: Parquet tables beside a small JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers._base import Indexed
from medflow import table_files
from medflow.records import Manifest, Predictions


class ManifestMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Manifest,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    def save(self, data: Manifest) -> None:
        self.put_files(table_files.manifest_files(data))

    def load(self, data_type: type[Manifest]) -> Manifest:
        return table_files.read_manifest(self.get_file)

    def pages(self, data: Manifest) -> Mapping[str, bytes | str]:
        from medflow.report import pages

        return pages.manifest_pages(data)

    def facts(self, data: Manifest) -> Mapping[str, Any]:
        return {"images": len(data), "dataset": data.card.name}


class PredictionsMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Predictions,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA_ANALYSIS

    def save(self, data: Predictions) -> None:
        self.put_files(table_files.predictions_files(data))

    def load(self, data_type: type[Predictions]) -> Predictions:
        return table_files.read_predictions(self.get_file)

    def pages(self, data: Predictions) -> Mapping[str, bytes | str]:
        from medflow.report import pages

        return pages.predictions_pages(data)

    def facts(self, data: Predictions) -> Mapping[str, Any]:
        return {"images": len(data)}

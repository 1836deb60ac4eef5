"""Bundles: weights or graph, card and golden set, as files; and the incumbent, which may be none."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers._base import Indexed
from medflow.records import NOT_TOLD, Bundle, Challenge, Incumbent, Past


class BundleMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Bundle,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def save(self, data: Bundle) -> None:
        self.put_folder(data.root, data.files())

    def load(self, data_type: type[Bundle]) -> Bundle:
        return Bundle.open(self.get_folder())

    def pages(self, data: Bundle) -> Mapping[str, bytes | str]:
        from medflow.report import pages

        return pages.bundle_pages(data)

    def facts(self, data: Bundle) -> Mapping[str, Any]:
        card = data.card
        return {"model": card.name, "variant": card.variant, "weights_bytes": card.bytes, "parameters": card.parameters}


class IncumbentMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Incumbent,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    CHALLENGE: ClassVar[str] = "challenge.json"
    PAST: ClassVar[str] = "past.json"
    FOLDER: ClassVar[str] = "bundle"

    def save(self, data: Incumbent) -> None:
        with tempfile.TemporaryDirectory(prefix="medflow-") as folder:
            root = Path(folder)
            (root / self.CHALLENGE).write_text(data.challenge.model_dump_json())
            (root / self.PAST).write_text(data.past.model_dump_json())
            copied = data.bundle.copy_to(root / self.FOLDER).files() if data.bundle else ()
            self.put_folder(root, (root / self.CHALLENGE, root / self.PAST, *copied))

    def load(self, data_type: type[Incumbent]) -> Incumbent:
        root = self.get_folder()
        challenge = Challenge.model_validate_json((root / self.CHALLENGE).read_text())
        folder = root / self.FOLDER
        told = root / self.PAST  # older artifacts have none
        past = Past.model_validate_json(told.read_text()) if told.exists() else NOT_TOLD
        return Incumbent(challenge=challenge, bundle=Bundle.open(folder) if folder.exists() else None, past=past)

    def pages(self, data: Incumbent) -> Mapping[str, bytes | str]:
        return {"challenge.json": data.challenge.model_dump_json(indent=1)}

    def facts(self, data: Incumbent) -> Mapping[str, Any]:
        return {"stage": data.challenge.stage, "present": data.bundle is not None}

"""Packages: one .bento file and its facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers._base import Indexed
from medflow.records import Package, PackageFacts


class PackageMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Package,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.SERVICE

    def save(self, data: Package) -> None:
        self.put_folder(data.root, data.files())

    def load(self, data_type: type[Package]) -> Package:
        root = self.get_folder()
        return Package(root=root, facts=PackageFacts.model_validate_json((root / Package.FACTS).read_text()))

    def pages(self, data: Package) -> Mapping[str, bytes | str]:
        return {"package.json": data.facts.model_dump_json(indent=1)}

    def facts(self, data: Package) -> Mapping[str, Any]:
        return {"tag": data.facts.tag, "content_digest": data.facts.content_digest}

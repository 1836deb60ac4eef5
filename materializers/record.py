"""Every small record, as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers._base import Indexed
from medflow.records import Record


class RecordMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Record,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA_ANALYSIS

    FILE: ClassVar[str] = "record.json"

    def save(self, data: Record) -> None:
        self.put_files({self.FILE: data.model_dump_json(indent=1).encode()})

    def load(self, data_type: type[Record]) -> Record:
        return data_type.model_validate_json(self.get_file(self.FILE))

    def pages(self, data: Record) -> Mapping[str, bytes | str]:
        from medflow.report import pages

        return {**pages.record_pages(data), "record.json": data.model_dump_json(indent=1)}

    def facts(self, data: Record) -> Mapping[str, Any]:
        return {"record": type(data).__name__}

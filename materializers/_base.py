"""What all materializers share: an indexed folder, a content hash, pictures for the dashboard."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from medflow.platform import stored

KINDS: Mapping[str, VisualizationType] = {
    ".html": VisualizationType.HTML,
    ".csv": VisualizationType.CSV,
    ".json": VisualizationType.JSON,
    ".md": VisualizationType.MARKDOWN,
    ".png": VisualizationType.IMAGE,
}


class Indexed(BaseMaterializer):
    """A materializer whose artifact is a folder with an index.

    ZenML calls ``save``, ``save_visualizations``, ``extract_metadata`` and ``compute_content_hash`` in this
    order on one instance, so the index made by ``save`` serves the others.
    """

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    _index: stored.Index | None = None

    def put_files(self, files: Mapping[str, bytes]) -> None:
        self._index = stored.write_files(self.artifact_store, self.uri, files)

    def put_folder(self, root: Path, paths: Iterable[Path]) -> None:
        """Store files that lie below ``root``. Named one by one: the folder of a loaded artifact holds others too."""
        self._index = stored.write_folder(self.artifact_store, self.uri, root, paths)

    def get_file(self, name: str) -> bytes:
        return stored.read_file(self.artifact_store, self.uri, name)

    def get_folder(self) -> Path:
        return stored.local_folder(self.artifact_store, self.uri, self._temporary)

    def _temporary(self) -> Path:
        folder = tempfile.mkdtemp(prefix="medflow-")
        self._register_directory_for_deletion_after_step_execution(folder)
        return Path(folder)

    def show(self, pages: Mapping[str, bytes | str]) -> dict[str, VisualizationType]:
        """Write pages (name with suffix → content) beside the artifact for the dashboard."""
        shown = {}
        for name, page in pages.items():
            path = posixpath.join(self.uri, f"view_{name}")
            data = page.encode() if isinstance(page, str) else page
            with self.artifact_store.open(path, "wb") as stream:
                stream.write(data)
            shown[path] = KINDS[Path(name).suffix]
        return shown

    def save_visualizations(self, data: Any) -> dict[str, VisualizationType]:
        return self.show(self.pages(data))

    def pages(self, data: Any) -> Mapping[str, bytes | str]:
        """What the dashboard shows of ``data``; the first page is seen first."""
        return {}

    def extract_metadata(self, data: Any) -> dict[str, Any]:
        index = self._index or stored.read_index(self.artifact_store, self.uri)
        return {"index_sha256": index.sha256(), "files": len(index.files), "bytes": index.size(), **self.facts(data)}

    def facts(self, data: Any) -> Mapping[str, Any]:
        """Numbers worth seeing in the artifact's panel."""
        return {}

    def compute_content_hash(self, data: Any) -> str:
        return data.digest()

    def _get_storage_size(self, path: str) -> int | None:
        # ZenML would ask the store for every file's size; the index knows them.
        return self._index.size() if self._index else None

"""Packed pixels: shards and their index, used in place on a local store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers._base import Indexed
from medflow.records import PixelIndex, Pixels


class PixelsMaterializer(Indexed):
    ASSOCIATED_TYPES: ClassVar[tuple[type, ...]] = (Pixels,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    FILE: ClassVar[str] = "pixels.json"

    def save(self, data: Pixels) -> None:
        with tempfile.TemporaryDirectory(prefix="medflow-", dir=data.root.parent) as folder:
            root = Path(folder)
            (root / self.FILE).write_text(data.index.model_dump_json())
            shards = [shard.path for store in data.index.stores for shard in (*store.images, *store.masks)]
            for path in shards:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                _link(data.root / path, root / path)
            self.put_folder(root, (root / path for path in (self.FILE, *shards)))

    def load(self, data_type: type[Pixels]) -> Pixels:
        root = self.get_folder()
        return Pixels(root=root, index=PixelIndex.model_validate_json((root / self.FILE).read_text()))

    def pages(self, data: Pixels) -> Mapping[str, bytes | str]:
        from medflow.report import pages

        return pages.pixels_pages(data)

    def facts(self, data: Pixels) -> Mapping[str, Any]:
        sizes = [f"{store.spec.height}x{store.spec.width}x{store.spec.channels}" for store in data.index.stores]
        return {"images": data.index.rows, "sizes": ", ".join(sizes)}


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)

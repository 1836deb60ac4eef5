"""Raw files in, packed pixels and one table out."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import Declaration, IngestConfig
from medflow.records import Manifest, Pixels, Source


@step
def ingest(
    source: Source, dataset: str, declared: Declaration | None, sizes: tuple[int, ...], config: IngestConfig
) -> tuple[Annotated[Manifest, "manifest"], Annotated[Pixels, "pixels"]]:
    from medflow import datasets
    from medflow import ingest as ingestion
    from medflow.platform import context, store_access

    spec = datasets.get(dataset, declared)
    manifest, pixels = ingestion.ingest(
        source, spec, tuple(sizes), config, context.work_folder(), access=store_access.of_store()
    )
    return manifest, pixels

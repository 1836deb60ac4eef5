"""One shard of the raw files in, its packed pixels and its rows out."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import Declaration, IngestConfig
from medflow.records import Manifest, Pixels, Share, Source


@step
def ingest_shard(
    source: Source, dataset: str, declared: Declaration | None, sizes: tuple[int, ...], config: IngestConfig, shard: int
) -> tuple[Annotated[Manifest, "manifest_part"], Annotated[Pixels, "pixels_part"], Annotated[Share, "share"]]:
    from medflow import datasets
    from medflow import ingest as ingestion
    from medflow.platform import context, store_access

    spec = datasets.get(dataset, declared)
    made = ingestion.ingest_shard(
        source, spec, tuple(sizes), config, context.work_folder(), shard, access=store_access.of_store()
    )
    return made.manifest, made.pixels, made.share

"""All shards of `ingest` in, packed pixels and one table out."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.records import Manifest, Pixels, Share


@step
def merge_shards(
    manifests: list[Manifest], pixels: list[Pixels], shares: list[Share]
) -> tuple[Annotated[Manifest, "manifest"], Annotated[Pixels, "pixels"]]:
    from medflow import merge_shards as merging
    from medflow.platform import context

    merged, packed = merging.merge_shards(manifests, pixels, shares, context.work_folder())
    return merged, packed

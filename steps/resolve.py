"""Read the world: what the source holds now, where its groups lie, what is in production. Never cached."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import Declaration, SourceConfig, SplitConfig
from medflow.records import Challenge, Placement, Source


@step(enable_cache=False)
def resolve(
    dataset: str, declared: Declaration | None, config: SourceConfig, split: SplitConfig, stage: str
) -> tuple[Annotated[Source, "source"], Annotated[Placement, "placement"], Annotated[Challenge, "challenge"]]:
    from medflow import datasets, fetch
    from medflow.platform import context, history, registry, store_access, trackers

    trackers.begin(dataset)
    spec = datasets.get(dataset, declared)
    source = fetch.resolve(config, spec.card, spec.beside, access=store_access.of_store())
    placement = history.placement(dataset, source, split, context.planned_steps())
    return source, placement, registry.challenge(dataset, stage)

"""Settings searched by whole trainings, scored on validation rows. Its own study remembers; ZenML's cache does not."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import RunConfig, SearchConfig
from medflow.records import HeadSpec, Manifest, Normalization, Pixels, TuneResult


@step(enable_cache=False)
def tune(
    train: Manifest,
    val: Manifest,
    pixels: Pixels,
    normalization: Normalization,
    heads: tuple[HeadSpec, ...],
    config: RunConfig,
    search: SearchConfig,
) -> Annotated[TuneResult, "tuned"]:
    from medflow import model_files
    from medflow import tune as tuning
    from medflow.platform import context, store_access, studies, training_tracker

    context.refuse_changed(model_files.named(config.models, store_access.of_store()))
    config = config.model_copy(update={"train": training_tracker.as_asked(config.train)})
    rows = tuning.Rows(train, val, pixels, normalization, tuple(heads))
    with studies.parent(train.card.name) as record:
        return record(tuning.tune(rows, config, search, studies.budget(), studies.place(train.card.name)))

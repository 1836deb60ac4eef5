"""From a source to tuned settings: the data steps of a training, then one step that runs every trial.

Registered under the dataset's name like a training, so that the data steps are one cache and one history of splits.
The test rows go nowhere.
"""

from __future__ import annotations

from zenml import pipeline

import steps
from medflow import model_files
from medflow.config.sections import RunConfig, SearchConfig, TuneBudget
from medflow.platform import store_access, studies, training_tracker
from medflow.platform.caching import sound
from pipelines.training import heads, parted


def tuning(config: RunConfig, search: SearchConfig, budget: TuneBudget):
    """The tuning pipeline of one dataset. Call the result to run it on the active stack."""
    extra = {**training_tracker.settings(config), **studies.settings(budget)}

    @pipeline(name=config.dataset, enable_cache=True, extra=extra)
    def medflow_tuning():
        rows = parted(config)
        normalization = sound(steps.normalize)(train=rows.train, pixels=rows.pixels)
        sound(steps.tune, files=model_files.named(config.models, store_access.of_store()))(
            train=rows.train, val=rows.val, pixels=rows.pixels, normalization=normalization,
            heads=heads(config), config=studies.learning(config), search=search,
        )  # fmt: skip

    return medflow_tuning

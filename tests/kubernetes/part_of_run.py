"""The first steps of a training pipeline, of its data or up to its models: `python … PART PLACE DATASET SETTINGS`.

A training never comes from the cache. Prints what came of it as one JSON line. PLACE may be `local`.
Each process is a pipeline of its own, so that several of a dataset go on side by side.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from medflow.commands.place import go

NAME = f"part_of_run_{os.getpid()}"
DATA, TRAINING = "data", "training"


def main(part: str, where: str, dataset: str, overrides: list[str]) -> None:
    place = go(where)
    from medflow.config.reading import load
    from medflow.platform import runs
    from medflow.platform.kubernetes import running, upload
    from medflow.platform.kubernetes.settings import check_nodes
    from medflow.progress import say

    config = runs.settled(load(dataset, overrides))
    if place is None:
        run, _ = runs.execute(lambda: definition(part, config), NAME, say, None)
    else:
        check_nodes(place[0], config)
        config = upload.in_reach_of_pods(config, place[0])
        run, _ = running.execute(definition(part, config), NAME, say, *place)
    told = of_data(run) | (of_training(run, config) if part == TRAINING else {})
    print("TOLD " + json.dumps(told))


def definition(part: str, config: Any) -> Any:
    from zenml import pipeline

    import steps
    from medflow import model_files
    from medflow.platform import store_access, training_tracker
    from medflow.platform.caching import sound
    from pipelines import training

    @pipeline(name=NAME, enable_cache=True, extra=training_tracker.settings(config))
    def part_of_run() -> None:
        rows = training.parted(config)
        if part == DATA:
            return
        normalization = sound(steps.normalize)(train=rows.train, pixels=rows.pixels)
        for model in config.models:
            files = model_files.named((model,), store_access.of_store())
            sound(steps.train, files=files).with_options(enable_cache=False)(
                train=rows.train, val=rows.val, pixels=rows.pixels, normalization=normalization,
                heads=training.heads(config), model=model, config=config.train.determining(), id=f"train_{model.key}",
            )  # fmt: skip

    return part_of_run


def of_data(run: Any) -> dict[str, Any]:
    """The run, the content of what `ingest` made, and the steps that did not come from the cache."""
    outputs = run.steps["ingest"].outputs
    return {
        "run_id": str(run.id),
        "digests": {name: versions[0].content_hash for name, versions in outputs.items()},
        "ran": [name for name, step in run.steps.items() if step.status == "completed"],
    }


def of_training(run: Any, config: Any) -> dict[str, Any]:
    """Loss curve and weights of the first model."""
    card = run.steps[f"train_{config.models[0].key}"].outputs["trained"][0].load().card
    curve = [(entry.train_loss, entry.val_loss) for entry in card.training.epochs]
    log = card.training
    return {"curve": curve, "weights": card.weights_digest, "devices": log.devices, "threads": log.threads}


if __name__ == "__main__":
    from tests.kubernetes.part_of_run import main as imported

    imported(*sys.argv[1:4], json.loads(sys.argv[4]))

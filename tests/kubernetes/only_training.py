"""A training pipeline up to its first model, which never comes from the cache: `python … PLACE DATASET SETTINGS`.

Prints what came of it as one JSON line: the run, the loss curves, the digest of the weights. PLACE may be `local`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from medflow.commands.place import go

NAME = "only_training"


def main(where: str, dataset: str, overrides: list[str]) -> None:
    place = go(where)
    from medflow.config.reading import load
    from medflow.platform import runs
    from medflow.platform.kubernetes import running
    from medflow.platform.kubernetes.settings import check_nodes
    from medflow.progress import say

    config = runs.settled(load(dataset, overrides))
    if place is None:
        run, _ = runs.execute(lambda: definition(config), NAME, say, None)
    else:
        check_nodes(place[0], config)
        run, _ = running.execute(definition(config), NAME, say, *place)
    card = run.steps[f"train_{config.models[0].key}"].outputs["trained"][0].load().card
    curve = [(entry.train_loss, entry.val_loss) for entry in card.training.epochs]
    told: dict[str, Any] = {
        "run_id": str(run.id), "curve": curve, "weights": card.weights_digest, "devices": card.training.devices,
    }  # fmt: skip
    print("TOLD " + json.dumps(told))


def definition(config: Any) -> Any:
    from zenml import pipeline

    import steps
    from medflow.platform import training_tracker
    from medflow.platform.caching import sound
    from pipelines import training

    @pipeline(name=NAME, enable_cache=True, extra=training_tracker.settings(config))
    def only_training() -> None:
        rows = training.parted(config)
        normalization = sound(steps.normalize)(train=rows.train, pixels=rows.pixels)
        [model] = config.models
        sound(steps.train).with_options(enable_cache=False)(
            train=rows.train, val=rows.val, pixels=rows.pixels, normalization=normalization,
            heads=training.heads(config), model=model, config=config.train.determining(), id=f"train_{model.key}",
        )  # fmt: skip

    return only_training


if __name__ == "__main__":
    from tests.kubernetes.only_training import main as imported

    imported(*sys.argv[1:3], json.loads(sys.argv[3]))

"""The steps of a training pipeline up to its first model, and that never from the cache: `python … PLACE SETTINGS`.

Prints what came of it as one JSON line: the run, the loss curves, the digest of the weights.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from medflow.commands.place import go

NAME = "only_training"


def main(where: str, overrides: list[str]) -> None:
    place = go(where)
    assert place is not None
    from medflow.config.reading import load
    from medflow.platform import runs
    from medflow.platform.kubernetes import running
    from medflow.platform.kubernetes.settings import check_nodes
    from medflow.progress import say

    config = runs.settled(load("lung_disease", overrides))
    check_nodes(place[0], config)
    run, _ = running.execute(definition(config), NAME, say, *place)
    card = run.steps["train_vit"].outputs["trained"][0].load().card
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

    imported(sys.argv[1], json.loads(sys.argv[2]))

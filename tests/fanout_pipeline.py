"""Two trainings at once, without their arithmetic: what they do to ZenML and MLflow, each in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

from zenml import pipeline, step

DATASET = "fanout"
#: A folder in which both say that they are there, so that neither goes on before the other.
MEETING_VARIABLE = "TEST_MEETING"
SECONDS = 120


@step(enable_cache=False)
def learn(name: str) -> Annotated[str, "learnt"]:
    from medflow.platform import training_tracker

    meet("begin", name)
    with training_tracker.of_step(DATASET, f"train {name}") as tracker:
        tracker.params({"name": name})
        meet("middle", name)
        tracker.metrics({"loss": 0.5}, 1)
    return name


@step(enable_cache=False)
def last(learnt: list[str]) -> Annotated[int, "seen"]:
    from medflow.platform import trackers

    parent = trackers.parent_run(DATASET)
    assert trackers.parent_run(DATASET) == parent
    trackers.client().set_terminated(parent, "FINISHED")
    return len(learnt)


def meet(where: str, name: str) -> None:
    """Return once both processes are here."""
    folder = Path(os.environ[MEETING_VARIABLE], where)
    folder.mkdir(exist_ok=True)
    (folder / name).touch()
    deadline = time.monotonic() + SECONDS
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline, "the other one did not come"
        time.sleep(0.01)


@pipeline(name=DATASET)
def fanout():
    last(learnt=[learn(name=name, id=f"train_{name}") for name in ("one", "two")])

"""Several models of a dataset in parallel pods up to a limit, and an archive decoded in shards, a pod each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import pytest
from clusters import Cluster, Servers
from commands import Medflow, Trained, finished, registered, trained, user_of

pytestmark = [pytest.mark.timeout(3600)]

DATASET = "lung_disease"
#: Small members of the third published system's three families: ConvNeXt V2, EfficientNet V2, RegNetY.
FAMILIES = (
    "convnextv2_atto", "convnextv2_femto", "tf_efficientnetv2_b0", "tf_efficientnetv2_b1", "efficientnetv2_rw_t",
    "regnety_002", "regnety_004",
)  # fmt: skip
AT_ONCE = 2
SHARDS = 3
SMALL = (
    "source.kind=generated", "source.images=80", "train.epochs=1", "train.batch_size=16",
    "models=" + json.dumps([{"kind": "timm", "name": name, "size": 32, "pretrained": "none"} for name in FAMILIES]),
)  # fmt: skip
PLACE = """
stack: {stack}
parallel: {at_once}
orchestrator: {{cpu: 0.05, memory: 1Gi, timeout: 3000}}
steps:
  default: {{cpu: 0.1, memory: 2Gi, retries: 2, timeout: 1500, scratch: 2Gi}}
"""


@dataclass(frozen=True)
class Span:
    """When a container ran."""

    step: str
    start: datetime
    end: datetime


@pytest.fixture(scope="module")
def medflow(
    cluster: Cluster, servers: Servers, step_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Medflow]:
    servers.forget(DATASET)
    folder = tmp_path_factory.mktemp("fanout")
    with registered(user_of(cluster, servers, step_image, folder, f"test-fanout-{int(time.time())}")) as found:
        found.place.write_text(PLACE.format(stack=found.stack, at_once=AT_ONCE))
        yield found


@pytest.fixture(scope="module")
def sharded(medflow: Medflow) -> Trained:
    """Every model of a run, from images that were read in shards."""
    with medflow.start_training(medflow.place, DATASET, (*SMALL, f"ingest.shards={SHARDS}")) as process:
        return trained(finished(process))


def spans(pods: dict[str, list[dict[str, Any]]]) -> list[Span]:
    """When each step's containers ran, in order of their start."""
    ended = [
        (step, status["state"]["terminated"])
        for step, attempts in pods.items()
        for pod in attempts
        for status in pod["status"]["containerStatuses"]
    ]
    found = [Span(step, moment(state["startedAt"]), moment(state["finishedAt"])) for step, state in ended if step]
    return sorted(found, key=lambda span: span.start)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def most_at_once(found: list[Span]) -> int:
    """The largest number of spans that hold at one moment; times are whole seconds, so that an end is not at work."""
    events = sorted(chain.from_iterable([(span.start, 1), (span.end, -1)] for span in found if span.end > span.start))
    level = highest = 0
    for _, change in events:
        level += change
        highest = max(highest, level)
    return highest


def test_seven_models_train_in_pods_of_their_own_two_at_a_time(sharded: Trained, medflow: Medflow) -> None:
    found = spans(medflow.pods(sharded.run_id))
    trainings = [span for span in found if span.step.startswith("train_")]
    assert {span.step for span in trainings} == {f"train_{name}" for name in FAMILIES}
    first, last = min(span.start for span in trainings), max(span.end for span in trainings)
    work = sum((span.end - span.start).total_seconds() for span in trainings)
    print(f"seven trainings: {work:.0f} s of work in {(last - first).total_seconds():.0f} s")
    assert most_at_once(trainings) == AT_ONCE
    assert most_at_once(found) == AT_ONCE


def test_each_shard_has_a_pod_and_one_merges_them(sharded: Trained, medflow: Medflow) -> None:
    steps = {name for name in medflow.pods(sharded.run_id) if "ingest" in name}
    assert steps == {*(f"ingest_shard_{shard}" for shard in range(SHARDS)), "ingest"}


def test_shards_give_the_same_rows_and_pixels_as_one_step(sharded: Trained, medflow: Medflow) -> None:
    whole = medflow.read_data(DATASET, SMALL)
    # A run learns where images lay in the runs before, and may split anew.
    assert set(whole.ran) - {"split"} == {"resolve", "ingest"}
    assert set(whole.digests) == {"manifest", "pixels"} and all(whole.digests.values())
    assert whole.digests == sharded.digests

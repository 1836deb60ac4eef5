"""Several models of a dataset in parallel pods up to a limit, and an archive decoded in shards, a pod each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import pytest
from clusters import Cluster, Servers
from commands import Medflow, outcome_of, registered, user_of

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
    "source.kind=generated", "source.images=80", "train.epochs=1", "train.batch_size=16", "evaluate.resamples=100",
    "promote.resamples=100", "promote.floors=[]", "prune.enabled=false", "quantize.enabled=false",
    "models=" + json.dumps([{"kind": "timm", "name": name, "size": 32, "pretrained": "none"} for name in FAMILIES]),
)  # fmt: skip
PLACE = """
stack: {stack}
parallel: {at_once}
orchestrator: {{cpu: 0.05, memory: 1Gi, timeout: 3000}}
steps:
  default: {{cpu: 0.1, memory: 2Gi, retries: 2, timeout: 1500, scratch: 2Gi}}
"""
#: What a run of one archive has that was not decoded in shards; never cached: what looks at the world outside.
UNCACHED = {"resolve", "ingest", "incumbent", "promote", "record"}
DIGESTS = """
import json, sys
from medflow.commands.place import go
go(sys.argv[1])
from medflow.platform import stack
outputs = stack.client().get_pipeline_run(sys.argv[2]).steps["ingest"].outputs
print("digests", json.dumps({name: versions[0].content_hash for name, versions in outputs.items()}))
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
def sharded(medflow: Medflow) -> dict[str, Any]:
    return run(medflow, f"ingest.shards={SHARDS}")


def run(medflow: Medflow, *settings: str) -> dict[str, Any]:
    started = time.monotonic()
    outcome = outcome_of(medflow("run", DATASET, *SMALL, *settings, "--on", str(medflow.place), "--json"))
    print(f"{' '.join(settings)}: {len(outcome['steps'])} steps, {time.monotonic() - started:.0f} s")
    return outcome


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


def test_seven_models_train_in_pods_of_their_own_two_at_a_time(sharded: dict[str, Any], medflow: Medflow) -> None:
    found = spans(medflow.pods(sharded["run_id"]))
    trainings = [span for span in found if span.step.startswith("train_")]
    assert {span.step for span in trainings} == {f"train_{name}" for name in FAMILIES}
    first, last = min(span.start for span in trainings), max(span.end for span in trainings)
    work = sum((span.end - span.start).total_seconds() for span in trainings)
    print(f"seven trainings: {work:.0f} s of work in {(last - first).total_seconds():.0f} s")
    assert most_at_once(trainings) == AT_ONCE
    assert most_at_once(found) == AT_ONCE


def test_each_shard_has_a_pod_and_one_merges_them(sharded: dict[str, Any], medflow: Medflow) -> None:
    steps = {name for name in medflow.pods(sharded["run_id"]) if "ingest" in name}
    assert steps == {*(f"ingest_shard_{shard}" for shard in range(SHARDS)), "ingest"}


def test_shards_give_the_same_rows_and_pixels_as_one_step(sharded: dict[str, Any], medflow: Medflow) -> None:
    whole = run(medflow, "ingest.shards=1")
    assert digests(medflow, whole["run_id"]) == digests(medflow, sharded["run_id"])
    # The first run's model may be in production by now, and a split starts from what that was trained on.
    assert {step["name"] for step in whole["steps"] if not step["cached"]} - {"split"} == UNCACHED


def digests(medflow: Medflow, run_id: str) -> dict[str, str]:
    """Content hashes of what `ingest` made."""
    command = [sys.executable, "-c", DIGESTS, str(medflow.place), run_id]
    done = subprocess.run(command, env=medflow.environment, cwd=medflow.folder, capture_output=True, text=True)
    assert "digests " in done.stdout, done.stderr
    found: dict[str, str] = json.loads(done.stdout.partition("digests ")[2])
    assert set(found) == {"manifest", "pixels"} and all(found.values())
    return found

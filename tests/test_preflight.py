"""What `medflow stack check` asks of a cluster, asked of an API server that this machine plays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from api_server import ApiServer, served

from medflow.config.sections.place import PlaceConfig, StepPlace
from medflow.platform.kubernetes import fitting, preflight
from medflow.platform.kubernetes.findings import Check

PLACE = PlaceConfig(
    stack="a",
    orchestrator=StepPlace(priority="watches"),
    steps={"default": StepPlace(priority="steps"), "train": StepPlace(gpu=1, priority="steps", runtime_class="nvidia")},
)
PRESENT = {"priorityclasses": ("watches", "steps", "medflow-serving"), "runtimeclasses": ("nvidia",)}
TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
RUNTIME = {
    "metadata": {"name": "nvidia"},
    "scheduling": {
        "nodeSelector": {"gpu.present": "true"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "tolerationSeconds": 60}],
    },
}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with served() as found:
        for kind, names in PRESENT.items():
            for name in names:
                found.add(kind, {"metadata": {"name": name}, "value": 1, "handler": name})
        yield found


def told(server: ApiServer, place: PlaceConfig = PLACE) -> dict[Check, tuple[bool, str, str]]:
    found = preflight.class_findings(server.cluster(), place)
    return {item.check: (item.ok, item.found, item.remedy) for item in found}


def test_classes_that_are_there_are_well(server: ApiServer):
    assert told(server) == {
        Check.PRIORITY: (True, "medflow-serving, steps, watches", ""),
        Check.RUNTIME: (True, "nvidia", ""),
    }


@pytest.mark.parametrize("name", PRESENT["priorityclasses"])
def test_a_priority_of_steps_of_the_orchestrator_and_of_models_in_service_is_missed(server: ApiServer, name: str):
    del server.objects["priorityclasses"][name]
    ok, found, remedy = told(server)[Check.PRIORITY]
    assert not ok and found == f"there is no priority class {name}"
    assert remedy.startswith("apply infra/kubernetes, or name one of ")


def test_a_runtime_class_is_missed_where_a_step_asks_for_one(server: ApiServer):
    del server.objects["runtimeclasses"]["nvidia"]
    ok, found, remedy = told(server)[Check.RUNTIME]
    assert not ok and found == "there is no runtime class nvidia" and "overlay gpu" in remedy
    assert Check.RUNTIME not in told(server, PlaceConfig(stack="a"))


def test_classes_that_may_not_be_listed_are_not_said_to_be_absent(server: ApiServer):
    server.always = "403"
    assert all("may not be listed" in found for _, found, _ in told(server).values())


def test_a_runtime_class_brings_labels_and_tolerations():
    node: dict[str, Any] = {
        "metadata": {"labels": {"gpu.present": "true"}},
        "spec": {"taints": [TAINT]},
        "status": {"allocatable": {"nvidia.com/gpu": "1", "cpu": "8", "memory": "64Gi"}},
    }
    asked = PLACE.steps["train"]
    (alone,) = fitting.node_findings("train", asked, [node])
    (under,) = fitting.node_findings("train", fitting.under_runtime(asked, [RUNTIME]), [node])
    assert (alone.check, alone.ok, under.check, under.ok) == (Check.TAINTS, False, Check.NODES, True)
    node["metadata"]["labels"] = {}
    (elsewhere,) = fitting.node_findings("train", fitting.under_runtime(asked, [RUNTIME]), [node])
    assert not elsewhere.ok and "has the labels" in elsewhere.found

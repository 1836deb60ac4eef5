"""Steps against nodes, quotas and limits: each thing that is wrong is one finding with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from medflow.config.sections.place import StepPlace, Toleration
from medflow.platform.kubernetes.findings import Check
from medflow.platform.kubernetes.fitting import node_findings, quota_findings, shm_findings

GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def node(
    *, taints: tuple[dict[str, str], ...] = (), labels: dict[str, str] | None = None, **sizes: str
) -> dict[str, Any]:
    allocatable = {"cpu": "4", "memory": "16Gi", **sizes}
    return {
        "metadata": {"name": "node-1", "labels": labels or {}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": allocatable},
    }


GPU_NODE = node(taints=(GPU_TAINT,), labels={"disk": "ssd"}, **{"nvidia.com/gpu": "1"})


@pytest.mark.parametrize(
    ("asked", "nodes", "check", "words"),
    [
        (StepPlace(node_selector={"disk": "ssd"}), [node()], Check.NODES, "has the labels"),
        (StepPlace(gpu=1), [node()], Check.GPU, "at most 0 allocatable"),
        (StepPlace(gpu=2), [GPU_NODE], Check.GPU, "at most 1 allocatable"),
        (StepPlace(gpu=1), [GPU_NODE], Check.TAINTS, "nvidia.com/gpu=present:NoSchedule"),
        (StepPlace(gpu=1), [node(), GPU_NODE], Check.TAINTS, "nvidia.com/gpu=present:NoSchedule"),
        (
            StepPlace(gpu=1, tolerations=(Toleration(key="nvidia.com/gpu", value="absent"),)),
            [GPU_NODE],
            Check.TAINTS,
            "tolerates none",
        ),
        (StepPlace(memory="32Gi"), [node()], Check.NODES, "more than any node"),
        (StepPlace(cpu=8), [node(), node(cpu="7900m")], Check.NODES, "8 cores"),
    ],
)
def test_what_no_node_has_is_one_finding_with_a_remedy(asked, nodes, check, words):
    (found,) = node_findings("train", asked, nodes)
    assert (found.ok, found.check) == (False, check)
    assert words in found.found and found.remedy


@pytest.mark.parametrize(
    "toleration",
    [
        Toleration(operator="Exists"),
        Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),
        Toleration(key="nvidia.com/gpu", value="present"),
    ],
)
def test_a_tolerated_taint_is_none(toleration):
    (found,) = node_findings("train", StepPlace(gpu=1, tolerations=(toleration,)), [node(), GPU_NODE])
    assert found.ok


def test_a_taint_that_is_only_a_preference_is_none():
    (found,) = node_findings("train", StepPlace(), [node(taints=({"key": "old", "effect": "PreferNoSchedule"},))])
    assert found.ok


@pytest.mark.parametrize(
    ("hard", "used", "amiss"),
    [
        ({"requests.memory": "8Gi"}, {"requests.memory": "6Gi"}, True),
        ({"requests.memory": "8Gi"}, {"requests.memory": "5Gi"}, False),
        ({"pods": "10"}, {"pods": "9"}, True),
        ({"requests.cpu": "1"}, {}, True),
        ({"cpu": "1"}, {}, True),
        ({"memory": "8Gi"}, {"memory": "6Gi"}, True),
        ({"cpu": "2", "memory": "8Gi"}, {"memory": "5Gi"}, False),
        ({"limits.memory": "3Gi"}, {}, False),
        ({"persistentvolumeclaims": "0"}, {}, False),
    ],
)
def test_a_quota_must_have_room_for_the_step_and_the_orchestrator(hard, used, amiss):
    quotas = [{"metadata": {"name": "medflow"}, "spec": {"hard": hard}, "status": {"used": used}}]
    orchestrator = StepPlace(cpu=0.1, memory="1Gi")
    found = list(quota_findings("train", StepPlace(cpu=1, memory="2Gi"), orchestrator, quotas))
    assert [item.check for item in found] == ([Check.QUOTA] if amiss else [])


@pytest.mark.parametrize(("shm", "amiss"), [("2Gi", True), ("4Gi", True), ("1Gi", False), (None, False)])
def test_shared_memory_must_be_smaller_than_the_limit(shm, amiss):
    assert bool(list(shm_findings("train", StepPlace(memory="2Gi", shm=shm)))) is amiss

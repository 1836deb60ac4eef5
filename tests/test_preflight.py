"""What `medflow stack check` asks of a cluster, asked of an API server that this machine plays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from api_server import ApiServer, served, status
from test_kubernetes import STACK

from medflow.config.sections.place import PlaceConfig, StepPlace
from medflow.platform.kubernetes import fitting, preflight, probing
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


def test_quotas_that_may_not_be_listed_are_told(server: ApiServer):
    assert list(preflight.quota_findings(server.cluster(), PLACE)) == []
    server.always = "403"
    (found,) = preflight.quota_findings(server.cluster(), PLACE)
    assert (found.check, found.ok, found.found) == (Check.QUOTA, False, "quotas may not be listed")
    assert "medflow-client" in found.remedy


def looked(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Check, bool, str, str]]:
    """The whole check, of a cluster where accounts and rights are as they should be; the servers are not asked."""
    for account in ("default", STACK.cluster.orchestrator_account, STACK.cluster.step_account):
        server.add("serviceaccounts", {"metadata": {"name": account}})
    monkeypatch.setattr(preflight.cluster, "connect", lambda context, namespace: server.cluster())
    monkeypatch.setattr(preflight, "_server", lambda *asked: [])
    monkeypatch.setattr(preflight, "_store", lambda *asked: [])
    monkeypatch.setattr(probing, "POLL_SECONDS", 0.0)
    found = preflight.check("test", STACK, PLACE, {})
    return [(item.check, item.ok, item.found, item.remedy) for item in found]


def meddled(server: ApiServer, monkeypatch: pytest.MonkeyPatch, kind: str, answer: tuple[int, dict[str, Any]]) -> None:
    """Rights are granted, and what is made of a kind is answered so."""
    usual = server.answer

    def answers(verb: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if verb == "POST" and path.endswith("selfsubjectaccessreviews"):
            return (201, {"spec": {}, "status": {"allowed": True}}) if kind != "selfsubjectaccessreviews" else answer
        return answer if verb == "POST" and path.endswith(f"/{kind}") else usual(verb, path, body)

    monkeypatch.setattr(server, "answer", answers)


def test_a_refused_look_from_inside_is_a_finding_beside_the_others(server: ApiServer, monkeypatch):
    refusal = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'
    meddled(server, monkeypatch, "jobs", (403, status(403, "Forbidden", refusal)))
    *others, (check, ok, found, remedy) = looked(server, monkeypatch)
    assert {Check.RIGHTS, Check.NODES, Check.PRIORITY} <= {check for check, *_ in others}
    assert (check, ok) == (Check.POD, False) and refusal in found
    assert "quotas of the namespace medflow" in remedy and "medflow-client" not in remedy


def test_a_look_from_inside_whose_job_is_removed_ends_with_a_finding(server: ApiServer, monkeypatch):
    meddled(server, monkeypatch, "jobs", (201, {"metadata": {"name": "made, and removed at once"}}))
    check, ok, found, remedy = looked(server, monkeypatch)[-1]
    assert (check, ok) == (Check.POD, False) and found.startswith("the job of the check was removed: ") and remedy


def test_rights_that_may_not_be_asked_for_are_a_finding_and_nothing_is_started(server: ApiServer, monkeypatch):
    meddled(server, monkeypatch, "selfsubjectaccessreviews", (403, status(403, "Forbidden", "by a policy")))
    told = looked(server, monkeypatch)
    (rights,) = [item for item in told if item[0] is Check.RIGHTS]
    assert not rights[1] and "by a policy" in rights[2] and rights[3]
    assert Check.PRIORITY in {check for check, *_ in told} and "POST jobs" not in server.asked


def test_an_address_of_the_store_that_is_none_is_a_finding():
    store = STACK.store.model_copy(update={"endpoint": "http://"})
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    (found,) = preflight._store(STACK.model_copy(update={"store": store}), keys)
    assert (found.check, found.ok) == (Check.STORE, False) and "at http://: " in found.found

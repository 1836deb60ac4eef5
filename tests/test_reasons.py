"""Why a pod does not come, and whether the one that came is what was asked for: objects as the API writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from test_kubernetes import ASKED, STACK, job_of, waits_with

from medflow.platform.kubernetes import reasons, settings
from medflow.platform.kubernetes.cluster import Observed

JOB, POD = "x-train", "x-train-1"
Spec = dict[str, Any]


def before(seconds: float) -> datetime:
    """Of now, and not of when this file was read: a whole run of the tests takes minutes."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def event(reason: str, message: str, *, about: str = JOB, ago: float = 5, since: float | None = None) -> Spec:
    """``ago`` and ``since``: seconds before now at which it was said last, and first."""
    last, first = before(ago), before(since or ago)
    return {
        "reason": reason, "message": message, "type": "Warning", "involvedObject": {"name": about},
        "metadata": {"uid": f"{reason}{ago}"}, "firstTimestamp": first.isoformat(), "lastTimestamp": last.isoformat(),
    }  # fmt: skip


def pod(status: Spec, *, ago: float = 60) -> Spec:
    facts = {"name": POD, "labels": {"job-name": JOB}, "creationTimestamp": before(ago).isoformat()}
    return {"metadata": facts, "spec": job()["spec"]["template"]["spec"], "status": status}


def job() -> Spec:
    made = job_of(settings.pod_settings(ASKED, STACK.cluster))
    made["metadata"]["name"] = JOB
    return made


RUNNING = {"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]}
CREATING = waits_with("ContainerCreating", "")
LIMIT = 'Error creating: pods "x-train-" is forbidden: maximum memory usage per Container is 1Gi, but limit is 3Gi'
HOOK = 'Error creating: admission webhook "policy.example" denied the request: no owner'
ACCOUNT = (
    'Error creating: pods "x-train-" is forbidden: error looking up service account medflow/medflow-step: '
    'serviceaccount "medflow-step" not found'
)


def test_a_job_has_succeeded_with_as_many_of_its_pods_as_must() -> None:
    done, running = pod({"phase": "Succeeded"}), pod(RUNNING)
    assert reasons.over(Observed(job(), (done,))) and not reasons.over(Observed(job(), (running,)))
    of_two = job()
    of_two["spec"]["completions"] = 2
    assert not reasons.over(Observed(of_two, (done, running)))
    assert reasons.over(Observed(of_two, (done, done)))
    assert reasons.over(Observed({**of_two, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}))


@pytest.mark.parametrize("message", [LIMIT, HOOK, ACCOUNT])
def test_a_pod_that_cannot_be_made_is_told_in_the_api_server_s_newest_words(message: str) -> None:
    seen = Observed(job(), (), (event("FailedCreate", "older", ago=60), event("FailedCreate", message)))
    assert reasons.pending(seen) == f"its pod cannot be made: {message}"
    assert reasons.fatal(seen, ASKED) is None, "it may still come"


def test_an_account_that_does_not_come_ends_the_wait_with_what_to_do() -> None:
    given = event("FailedCreate", ACCOUNT, since=200)
    told = str(reasons.fatal(Observed(job(), (), (given,)), ASKED))
    assert told.startswith("refused for its service account: Error creating")
    assert "apply infra/kubernetes" in told and "\n" not in told
    assert reasons.fatal(Observed(job(), (pod(RUNNING, ago=1),), (given,)), ASKED) is None, "it has come since"


def test_what_was_said_before_the_newest_pod_was_made_is_over() -> None:
    said = event("FailedCreate", "exceeded quota: medflow, requested: pods=1", ago=100)
    assert reasons.pending(Observed(job(), (pod(RUNNING, ago=60),), (said,))) is None
    assert "no room in the quota" in str(reasons.pending(Observed(job(), (pod(RUNNING, ago=160),), (said,))))


def test_a_container_that_is_not_made_is_told_with_the_newest_warning_about_its_pod() -> None:
    words = 'MountVolume.SetUp failed for volume "source-0" : mount failed:'
    mount = event("FailedMount", f"{words}\n timed out", about=POD)
    other = event("FailedMount", "of another pod", about="x-train-0")
    normal = event("Scheduled", "assigned", about=POD) | {"type": "Normal"}
    seen = Observed(job(), (pod(CREATING),), (mount, normal, other))
    assert reasons.pending(seen) == f"FailedMount: {words} timed out"
    assert reasons.pending(Observed(job(), (pod(RUNNING),), (mount,))) is None
    assert reasons.pending(Observed(job(), (pod(CREATING),), (normal,))) is None


# -- the pods that were made -----------------------------------------------------------------------


def changed(change: Callable[[Spec, Spec], object]) -> str:
    """What is told of a pod that admission has changed."""
    made = copy.deepcopy(pod(RUNNING))
    [container] = made["spec"]["containers"]
    change(made["spec"], container)
    return str(reasons.fatal(Observed(job(), (made,), ()), ASKED))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec, main: main["resources"]["limits"].update(memory="1Gi"), "memory (limits): asked"),
        (lambda spec, main: main["resources"]["requests"].update(cpu="100m"), "cpu (requests): asked 1.5, found 0.1"),
        (lambda spec, main: main["resources"]["limits"].pop("nvidia.com/gpu"), "gpu (limits)"),
        (lambda spec, main: spec.pop("nodeSelector"), "node_selector: asked {'disk': 'ssd'}, found {}"),
        (lambda spec, main: spec.update(tolerations=[]), "tolerations: asked"),
        (lambda spec, main: spec.update(priorityClassName="other"), "priority: asked medflow-batch, found other"),
        (lambda spec, main: spec.update(volumes=[v for v in spec["volumes"] if v["name"] != "shm"]), "shm: asked"),
        (lambda spec, main: main.pop("envFrom"), "secrets: asked"),
    ],
)
def test_a_pod_that_the_cluster_has_changed_is_told(change: Callable[[Spec, Spec], object], words: str) -> None:
    told = changed(change)
    assert told.startswith(f"the cluster made another pod than was asked for: pod {POD}, ") and words in told


def added_by_kubernetes(spec: Spec, container: Spec) -> None:
    """As pods of the test cluster have it."""
    for condition in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{condition}"
        spec["tolerations"].append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    spec |= {"priority": 1000, "preemptionPolicy": "Never", "nodeName": "node-1", "schedulerName": "default-scheduler"}
    spec["volumes"].append({"name": "kube-api-access-x", "projected": {"sources": []}})
    spec["nodeSelector"]["pool"] = "a"
    container["volumeMounts"].append({"name": "kube-api-access-x", "mountPath": "/var/run/secrets", "readOnly": True})
    container["resources"]["limits"]["cpu"] = "4"
    spec["containers"].insert(0, {"name": "proxy", "resources": {}})


def test_what_kubernetes_adds_to_a_pod_is_passed_over() -> None:
    assert changed(added_by_kubernetes) == "None"

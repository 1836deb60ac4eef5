"""Which release serves, and which comes back, when deployments are killed, fail, or meet an API server in trouble."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes.client import ApiException
from test_serving_objects import a_release
from urllib3.exceptions import ReadTimeoutError

from medflow.errors import ConfigError, MedflowError, PlatformError, ServingError
from medflow.platform.kubernetes import deploying
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.objects import Objects
from medflow.platform.kubernetes.serving_objects import RELEASE, Document, Release

MODEL = "phantom"
OOM = {"containerStatuses": [{"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]}
COUNT = itertools.count(1)


def version(number: str, **settings: object) -> Release:
    return a_release(MODEL, number, **settings)


@dataclass
class Trouble:
    """What the API server does in place of an answer: a status, or nothing at all where that is None."""

    status: int | None
    verb: str = "get"
    times: int = 1


@dataclass(frozen=True)
class Namespace(Objects):
    """Objects in memory. Pods come at once, but for versions that are ``slow`` or that ``fail``."""

    found: dict[tuple[str, str], Document] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    fail: set[str] = field(default_factory=set)
    troubles: list[Trouble] = field(default_factory=list)
    armed: list[str] = field(default_factory=list)
    """Troubles begin with what is applied of this kind, or at once where it is empty."""
    applied: list[Document] = field(default_factory=list)

    @property
    def deployment(self) -> Document:
        return self.found["Deployment", f"model-{MODEL}"]

    def restart(self) -> None:
        """As `kubectl rollout restart` does."""
        self.deployment["metadata"]["generation"] += 1
        self.deployment["restarting"] = True

    def _send(self, verb: str, api_version: str, kind: str, words: dict[str, Any]) -> Document:
        self._stumble(verb)
        if verb == "server_side_apply":
            return self._applied(kind, words["name"], json.loads(json.dumps(words["body"])))
        if verb == "delete":
            return self._one(kind, words["name"], take=True)
        if "name" in words:
            return self._seen(self._one(kind, words["name"]))
        return {"items": self._items(kind)}

    def _stumble(self, verb: str) -> None:
        if self.armed or not self.troubles or self.troubles[0].verb != verb:
            return
        trouble = self.troubles[0]
        trouble.times -= 1
        if trouble.times == 0:
            self.troubles.pop(0)
        if trouble.status is not None:
            raise ApiException(status=trouble.status, reason="trouble")
        late = ReadTimeoutError(None, "/", "late")  # type: ignore[arg-type]
        raise PlatformError("the cluster's API does not answer: ReadTimeoutError", hint="try again") from late

    def _applied(self, kind: str, name: str, body: Document) -> Document:
        before = self.found.get((kind, name))
        facts = before["metadata"] if before else {"uid": f"u{next(COUNT)}", "generation": 0, "resourceVersion": "0"}
        given = {key: body["metadata"].pop(key) for key in ("uid", "resourceVersion") if key in body["metadata"]}
        if any(facts[key] != value for key, value in given.items()):
            raise ApiException(status=409, reason="the object has been modified")
        same = before is not None and before["spec"] == body["spec"]
        body["metadata"] |= {
            "uid": facts["uid"],
            "generation": facts["generation"] + (not same),
            "resourceVersion": str(next(COUNT)),
        }
        if same and before is not None and "restarting" in before:
            body["restarting"] = True
        self.found[kind, name] = body
        self.applied.append(body)
        self.armed[:] = [each for each in self.armed if each != kind]
        return body

    def _one(self, kind: str, name: str, *, take: bool = False) -> Document:
        if (kind, name) not in self.found:
            raise ApiException(status=404)
        return self.found.pop((kind, name)) if take else self.found[kind, name]

    def _number(self) -> str:
        return str(json.loads(self.deployment["metadata"]["annotations"][RELEASE])["served"]["version"])

    def _seen(self, document: Document) -> Document:
        if document["kind"] != "Deployment":
            return document
        wanted, generation = document["spec"]["replicas"], document["metadata"]["generation"]
        comes = self._number() not in self.slow | self.fail and "restarting" not in document
        ready, reason = (wanted, "NewReplicaSetAvailable") if comes else (0, "ReplicaSetUpdated")
        status = {"observedGeneration": generation, "updatedReplicas": wanted, "replicas": wanted,
                  "availableReplicas": ready, "readyReplicas": ready,
                  "conditions": [{"type": "Progressing", "reason": reason}]}  # fmt: skip
        return document | {"status": status}

    def _items(self, kind: str) -> list[Document]:
        if kind == "Deployment":
            return [self._seen(self.deployment)]
        owner = {"ownerReferences": [{"uid": self.deployment["metadata"]["uid"]}]} if self.found else {}
        if kind == "ReplicaSet":
            return [{"metadata": {"name": "set", "labels": {"pod-template-hash": "h"}, **owner}}]
        if kind == "Pod" and self._number() in self.fail:
            facts = {"name": "pod", "creationTimestamp": "2026-11-30T00:00:00Z"}
            return [{"metadata": facts, "spec": {"containers": [{}]}, "status": OOM}]
        return []


class Clock:
    """Time that only sleeping takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deploying, "time", clock)
    return clock


@pytest.fixture
def here(clock: Clock) -> deploying.Target:
    objects = Namespace(None, "medflow", "medflow")  # type: ignore[arg-type]
    return deploying.Target(Cluster(None, None, "medflow"), objects)  # type: ignore[arg-type]


def there(target: deploying.Target) -> Namespace:
    assert isinstance(target.objects, Namespace)
    return target.objects


def deploy(target: deploying.Target, number: str, **settings: object) -> deploying.Deployed:
    return deploying.deploy(target, version(number, **settings), lambda line: None)


def killed_while_coming(target: deploying.Target, number: str) -> None:
    def kill(line: str) -> None:
        raise KeyboardInterrupt

    there(target).slow.add(number)
    with pytest.raises(KeyboardInterrupt):
        deploying.deploy(target, version(number), kill)


def failing(target: deploying.Target, number: str) -> str:
    there(target).fail.add(number)
    with pytest.raises(ServingError) as told:
        deploy(target, number)
    return told.value.message


def standing(target: deploying.Target) -> tuple[str, str | None, str]:
    (found,) = deploying.deployments(target)
    return found.model, found.before, found.state


# -- what served before ----------------------------------------------------------------------------


def test_each_release_keeps_the_one_that_served_before(here: deploying.Target) -> None:
    assert deploy(here, "1").before is None
    assert deploy(here, "2").before == "phantom@1"
    assert deploy(here, "2").before == "phantom@1"
    assert deploying.deploy(here, deploying.previous(here, MODEL)).before == "phantom@2"
    assert "phantom@1 goes on serving" in failing(here, "3")
    assert standing(here) == ("phantom@1", "phantom@2", "in service")


@pytest.mark.parametrize("back", ["previous", "again"])
def test_a_release_is_never_what_served_before_itself(here: deploying.Target, back: str) -> None:
    deploy(here, "1")
    killed_while_coming(here, "2")
    assert standing(here) == ("phantom@2", "phantom@1", "coming")
    found = deploying.deploy(here, deploying.previous(here, MODEL) if back == "previous" else version("1"))
    assert (found.model, found.before) == ("phantom@1", None)
    with pytest.raises(ConfigError, match="nothing served before phantom@1"):
        deploying.previous(here, MODEL)


def test_what_is_put_back_is_not_what_served_before_itself(here: deploying.Target) -> None:
    deploy(here, "1")
    killed_while_coming(here, "2")
    assert "phantom@1 goes on serving" in failing(here, "3")
    assert standing(here) == ("phantom@1", None, "in service")


# -- what serves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("older", [None, "0"])
def test_a_release_whose_pods_start_again_is_put_back(here: deploying.Target, older: str | None) -> None:
    if older:
        deploy(here, older)
    deploy(here, "1")
    there(here).restart()
    assert standing(here)[2] == "in service"
    assert "phantom@1 goes on serving" in failing(here, "2")
    assert standing(here) == ("phantom@1", f"phantom@{older}" if older else None, "in service")


def test_a_release_that_nobody_followed_to_its_end_serves_too(here: deploying.Target) -> None:
    deploy(here, "1")
    killed_while_coming(here, "2")
    there(here).slow.clear()
    assert "phantom@2 goes on serving" in failing(here, "3")


def test_a_release_that_did_not_arrive_does_not_serve(here: deploying.Target) -> None:
    deploy(here, "1")
    killed_while_coming(here, "2")
    assert deploying.ARRIVED not in there(here).deployment["metadata"]["annotations"]


def test_a_second_time_changes_nothing(here: deploying.Target) -> None:
    deploy(here, "1")
    deploy(here, "2")
    first = there(here).deployment
    there(here).applied.clear()
    deploy(here, "2")
    (again,) = (each for each in there(here).applied if each["kind"] == "Deployment")
    for key in ("annotations", "generation", "uid"):
        assert again["metadata"][key] == first["metadata"][key]
    assert first["metadata"]["annotations"][deploying.ARRIVED] == "true" and first["metadata"]["generation"] == 2


def test_pods_that_load_has_asked_for_stay_when_a_release_has_arrived(
    here: deploying.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = deploying._follow

    def then_scaled(*words: Any) -> str | None:
        why = follow(*words)
        there(here).deployment["spec"]["replicas"] = 4
        return why

    monkeypatch.setattr(deploying, "_follow", then_scaled)
    assert deploy(here, "1", replicas=(2, 4)).replicas == 4


def test_what_another_deploys_at_that_moment_stays(here: deploying.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = deploying._marked

    def meanwhile(objects: Objects, *words: Any) -> Document:
        made = marked(objects, *words)
        if there(here)._number() == "1":
            deploying._apply(objects, deploying._documents(objects, version("2"), None, replicas=2, arrived=False))
        return made

    monkeypatch.setattr(deploying, "_marked", meanwhile)
    deploy(here, "1")
    assert there(here)._number() == "2"
    assert deploying.ARRIVED not in there(here).deployment["metadata"]["annotations"]


# -- an API server in trouble ----------------------------------------------------------------------


def in_trouble(target: deploying.Target, *troubles: Trouble, after: str = "PodDisruptionBudget") -> None:
    """Once an object of that kind is applied; by default the last one."""
    there(target).armed.append(after)
    there(target).troubles.extend(troubles)


@pytest.mark.parametrize("status", [429, 500, 504, None])
def test_a_hiccup_of_the_api_server_ends_no_rollout(here: deploying.Target, status: int | None) -> None:
    lines: list[str] = []
    in_trouble(here, Trouble(status, times=3))
    assert deploying.deploy(here, version("1"), lines.append).state == "in service"
    assert len(lines) == 1 and lines[0].endswith("; asking again")
    assert there(here).troubles == []


@pytest.mark.parametrize(
    ("before", "way"),
    [
        (None, "`medflow undeploy phantom` takes it away"),
        ("1", "`medflow deploy phantom --previous` puts phantom@1 back"),
    ],
)
def test_an_api_server_that_stays_away_ends_the_wait_in_time(
    here: deploying.Target, clock: Clock, before: str | None, way: str
) -> None:
    if before:
        deploy(here, before)
    in_trouble(here, Trouble(500, times=10_000))
    told = refused(here, "2", timeout=30)
    assert "status 500" in told.message and told.message.endswith("phantom@2 is still coming")
    assert "the same deployment again" in told.hint and way in told.hint
    assert clock.now <= 30 + 2 * deploying.POLL_SECONDS


@pytest.mark.parametrize(
    ("trouble", "after"),
    [(Trouble(403), "PodDisruptionBudget"), (Trouble(500, "server_side_apply"), "Deployment")],
)
def test_a_refusal_is_told_at_once_with_what_still_comes(
    here: deploying.Target, clock: Clock, trouble: Trouble, after: str
) -> None:
    in_trouble(here, trouble, after=after)
    assert refused(here, "1").message.endswith("phantom@1 is still coming")
    assert clock.now == 0


def test_a_refusal_before_anything_comes_is_told_alone(here: deploying.Target) -> None:
    in_trouble(here, Trouble(403, "server_side_apply"), after="NetworkPolicy")
    assert "coming" not in refused(here, "1").message
    assert "Deployment" not in {each["kind"] for each in there(here).applied}


def test_where_a_failed_release_cannot_be_taken_back_that_is_told(here: deploying.Target) -> None:
    deploy(here, "1")
    there(here).fail.add("2")
    in_trouble(here, Trouble(500, "server_side_apply"))
    told = refused(here, "2")
    assert "phantom@2 did not come into service: OOMKilled" in told.message and "not taken back" in told.message
    assert "`medflow deploy phantom@1` brings back what served before" in told.hint


def test_a_release_that_serves_is_in_service_where_that_cannot_be_written_down(here: deploying.Target) -> None:
    in_trouble(here, Trouble(403, "server_side_apply", times=10))
    assert deploy(here, "1").state == "in service"
    assert deploying.ARRIVED not in there(here).deployment["metadata"]["annotations"]


def refused(target: deploying.Target, number: str, **settings: object) -> MedflowError:
    with pytest.raises(PlatformError) as told:
        deploy(target, number, **settings)
    return told.value

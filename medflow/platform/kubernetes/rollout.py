"""How far new pods of a model are, and why they do not come: from what the cluster says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medflow.platform.kubernetes import reasons
from medflow.platform.kubernetes.cluster import Cluster, Observed, last_seen
from medflow.platform.kubernetes.serving_objects import Document, labels_of, object_name

if TYPE_CHECKING:
    from medflow.platform.kubernetes.objects import Objects

REVISION = "deployment.kubernetes.io/revision"
#: A container that ended so often will end again.
RESTARTS = 2
#: What the service writes once where its golden set does not come out (`medflow.serve`): waiting does not help.
NOT_READY = re.compile(r"not ready: .*")
Told = frozenset[tuple[str, int]]
"""Events that were there before, by id and count."""


@dataclass(frozen=True)
class Rollout:
    """A Deployment, and its newest pods with what was told of them since the rollout began."""

    deployment: Document
    newest: Observed | None

    @property
    def ready(self) -> int:
        pods = self.newest.pods if self.newest else ()
        return sum(_is_ready(pod) for pod in pods)

    @property
    def wanted(self) -> int:
        return int(self.deployment["spec"]["replicas"])


def told(objects: Objects) -> Told:
    """The events of now."""
    return frozenset(_mark(event) for event in _events(objects))


def look(objects: Objects, model: str, known: Told) -> Rollout | None:
    """The rollout of a model as it is; None where there is no Deployment."""
    deployment = objects.get("apps/v1", "Deployment", object_name(model))
    if deployment is None:
        return None
    newest = _newest(objects, deployment, model)
    if newest is None:
        return Rollout(deployment, None)
    labels = {**labels_of(model), "pod-template-hash": newest["metadata"]["labels"]["pod-template-hash"]}
    pods = sorted(objects.listed("v1", "Pod", labels), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    about = {newest["metadata"]["name"], *(pod["metadata"]["name"] for pod in pods)}
    events = (event for event in _events(objects) if event["involvedObject"].get("name") in about)
    return Rollout(deployment, Observed(newest, tuple(pods), tuple(e for e in events if _mark(e) not in known)))


def settled(deployment: Document) -> bool:
    """Whether the last change has arrived: as many new pods answer as are wanted, and the old ones are gone."""
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return False
    counts = [status.get(key, 0) for key in ("updatedReplicas", "replicas", "availableReplicas")]
    return wanted > 0 and counts == [wanted] * 3


def arrived(deployment: Document) -> bool:
    """Whether the last change has arrived once, though pods may be starting since, as load asks for more of them."""
    status = deployment.get("status", {})
    progress = [item.get("reason") for item in status.get("conditions", []) if item["type"] == "Progressing"]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return seen and progress == ["NewReplicaSetAvailable"]


def hopeless(seen: Rollout, cluster: Cluster) -> str | None:
    """Why new pods will not come, however long one waits; None where they may."""
    if seen.newest is None:
        return None
    return reasons.fatal(_of_now(seen.newest)) or _crashing(seen.newest, cluster) or _refusing(seen.newest, cluster)


def late(seen: Rollout | None, cluster: Cluster) -> str:
    """Why new pods have not come in time, as far as the cluster tells."""
    if seen is None or seen.newest is None:
        return "its pods were never made"
    probes = [event for event in seen.newest.events if event.get("reason") == "Unhealthy"]
    words = reasons.pending(seen.newest) or (" ".join(str(probes[-1].get("message")).split()) if probes else None)
    pods = [pod for pod in seen.newest.pods if not _is_ready(pod)]
    line = _last_line(cluster, pods[-1]) if pods else None
    return "; ".join(filter(None, (words or "its pods did not become ready", _quoted(line))))


def _of_now(newest: Observed) -> Observed:
    """Without what once befell pods that are ready again. They stay: what was said before they were made is over."""
    return replace(newest, pods=tuple({**pod, "status": {}} if _is_ready(pod) else pod for pod in newest.pods))


def _crashing(newest: Observed, cluster: Cluster) -> str | None:
    for pod in newest.pods:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            if status.get("restartCount", 0) >= RESTARTS and not status.get("ready"):
                code = (status.get("lastState", {}).get("terminated") or {}).get("exitCode")
                line = _last_line(cluster, pod, previous=True)
                return "; ".join(filter(None, (f"its container ends again and again, exit code {code}", _quoted(line))))
    return None


def _refusing(newest: Observed, cluster: Cluster) -> str | None:
    """The service's own words, where it is up to say that it will not become ready."""
    for pod in newest.pods:
        started = [status.get("started") for status in pod.get("status", {}).get("containerStatuses") or []]
        if any(started) and not _is_ready(pod):
            for line in _lines(cluster, pod):
                if found := NOT_READY.search(line):
                    return found[0]
    return None


def _newest(objects: Objects, deployment: Document, model: str) -> Document | None:
    """The replica set of the last change; None until the controller has made it."""
    metadata, status = deployment["metadata"], deployment.get("status", {})
    if status.get("observedGeneration", 0) < metadata["generation"]:
        return None
    for each in objects.listed("apps/v1", "ReplicaSet", labels_of(model)):
        owners = [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]
        revision = each["metadata"].get("annotations", {}).get(REVISION)
        if metadata["uid"] in owners and revision == metadata.get("annotations", {}).get(REVISION):
            return each
    return None


def _is_ready(pod: Document) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _events(objects: Objects) -> list[Document]:
    """Oldest first."""
    return sorted(objects.listed("v1", "Event", {}), key=last_seen)


def _mark(event: dict[str, Any]) -> tuple[str, int]:
    return event["metadata"]["uid"], int(event.get("count") or 0)


def _last_line(cluster: Cluster, pod: Document, *, previous: bool = False) -> str | None:
    return next(reversed(_lines(cluster, pod, previous=previous)), None)


def _lines(cluster: Cluster, pod: Document, *, previous: bool = False) -> list[str]:
    """What the pod wrote last; none where it is gone, has not started, or its node does not answer."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        text = cluster.core.read_namespaced_pod_log(
            pod["metadata"]["name"], cluster.namespace, tail_lines=50, previous=previous
        )
    except (ApiException, HTTPError):
        return []
    return [line.strip() for line in str(text).splitlines() if line.strip()]


def _quoted(line: str | None) -> str | None:
    return f"its log ends: {line[:300]}" if line else None

"""Models into service, back to the release before, and out of service.

The release is written on the Deployment, and beside it the one that served before: what is in service is what the
cluster says, and a process that was killed leaves nothing behind that another needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from medflow.errors import ConfigError, PlatformError, ServingError
from medflow.platform.kubernetes import rollout
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.objects import Objects, objects_of
from medflow.platform.kubernetes.serving_objects import (
    BEFORE,
    COMPONENT,
    MANAGER,
    MODEL_LABEL,
    RELEASE,
    Document,
    Release,
    kinds,
    labels_of,
    object_name,
    release_in,
    rendered,
)
from medflow.progress import say as say_line
from medflow.records import Record

POLL_SECONDS = 2.0
#: How long pods may take to go, over what they are given.
GONE_SECONDS = 60.0
Say = Callable[[str], None]


class Deployed(Record):
    """A model in a cluster."""

    model: str
    """NAME@VERSION."""
    bento: str
    image: str
    namespace: str
    url: str
    """Valid in the cluster."""
    ready: int
    replicas: int
    state: str
    """``in service``, or ``coming``: a release that has not arrived, while the one before may serve."""
    before: str | None
    """What served before: NAME@VERSION."""


@dataclass(frozen=True)
class Target:
    """A namespace that models are served in."""

    cluster: Cluster
    objects: Objects


def target(cluster: Cluster) -> Target:
    return Target(cluster, objects_of(cluster, MANAGER))


def deploy(to: Target, release: Release, say: Say = say_line) -> Deployed:
    """Bring a release into service and wait for it. Where it does not come, what served before goes on.

    Raises ServingError where its pods do not become ready, PlatformError where the cluster refuses.
    """
    model, objects = release.served.model, to.objects
    live = _live(objects, model)
    current, kept = _serving(live), release_in(_annotations(live), BEFORE)
    before = kept if current == release else current
    known = rollout.told(to.objects)
    _apply(objects, release, before, replicas=_replicas(live, release))
    why = _follow(to, release, known, say)
    if why is None:
        return describe(_live(objects, model) or {}, to.cluster.namespace)
    _put_back(objects, model, current, kept, live)
    after = f"{current.served.ref} goes on serving" if current else "nothing served before, so it was taken away again"
    raise ServingError(
        f"{release.served.ref} did not come into service: {why}; {after}",
        hint="mend what is said above, then deploy again",
    )


def previous(to: Target, model: str) -> Release:
    """What served before the release that serves. Raises ConfigError where nothing did."""
    live = _live(to.objects, model)
    if live is None:
        raise _absent(to, model)
    found = release_in(_annotations(live), BEFORE)
    if found is None:
        raise ConfigError(
            f"nothing served before {_release(live).served.ref}", hint=f"`medflow deploy {model}@VERSION` deploys any"
        )
    return found


def undeploy(to: Target, model: str, say: Say = say_line) -> None:
    """Take a model out of service: all its objects, and wait until its pods have ended. Raises ConfigError."""
    objects = to.objects
    live = _live(objects, model)
    if live is None:
        raise _absent(to, model)
    _remove(objects, model)
    until = time.monotonic() + live["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] + GONE_SECONDS
    said = 0
    while pods := objects.listed("v1", "Pod", labels_of(model)):
        if time.monotonic() > until:
            raise PlatformError(
                f"{len(pods)} pods of {model} have not ended", hint="kubectl get pods; kubectl describe"
            )
        if len(pods) != said:
            say(f"{len(pods)} pods end")
            said = len(pods)
        time.sleep(POLL_SECONDS)


def deployments(to: Target) -> list[Deployed]:
    """Every model in the namespace."""
    labels = {**COMPONENT, "app.kubernetes.io/managed-by": MANAGER}
    found = to.objects.listed("apps/v1", "Deployment", labels)
    return sorted((describe(each, to.cluster.namespace) for each in found), key=lambda item: item.model)


def describe(live: Document, namespace: str) -> Deployed:
    release, status = _release(live), live.get("status", {})
    before = release_in(_annotations(live), BEFORE)
    served, port = release.served, release.settings.port
    return Deployed(
        model=served.ref,
        bento=served.bento,
        image=served.image,
        namespace=namespace,
        url=f"http://{object_name(served.model)}.{namespace}.svc" + (f":{port}" if port != 80 else ""),
        ready=status.get("readyReplicas", 0),
        replicas=live["spec"]["replicas"],
        state="in service" if rollout.arrived(live) else "coming",
        before=before.served.ref if before else None,
    )


def _follow(to: Target, release: Release, known: rollout.Told, say: Say) -> str | None:
    """Wait for new pods; None when they serve, or why they will not. Raises ServingError."""
    model, until = release.served.model, time.monotonic() + release.settings.timeout
    said = ""
    while True:
        seen = rollout.look(to.objects, model, known)
        if seen is None or release_in(_annotations(seen.deployment), RELEASE) != release:
            raise ServingError(f"{model} was deployed or taken away by another meanwhile", hint="medflow deployments")
        if rollout.settled(seen.deployment):
            return None
        if why := rollout.hopeless(seen, to.cluster):
            return why
        if time.monotonic() > until:
            return f"not ready in {release.settings.timeout} s: {rollout.late(seen, to.cluster)}"
        line = f"{release.served.ref}: {seen.ready} of {seen.wanted} new pods ready"
        if line != said:
            say(line)
            said = line
        time.sleep(POLL_SECONDS)


def _put_back(
    objects: Objects, model: str, current: Release | None, kept: Release | None, live: Document | None
) -> None:
    if current is None:
        _remove(objects, model)
    else:
        _apply(objects, current, kept, replicas=_replicas(live, current))


def _apply(objects: Objects, release: Release, before: Release | None, *, replicas: int) -> None:
    for document in rendered(release, objects.namespace, replicas=replicas, before=before):
        objects.apply(document)


def _remove(objects: Objects, model: str) -> None:
    for api_version, kind in kinds():
        objects.delete(api_version, kind, object_name(model))


def _replicas(live: Document | None, release: Release) -> int:
    """As many as there are, since load decided on them, within what the release allows."""
    least, most = release.settings.replicas
    return least if live is None else min(max(int(live["spec"]["replicas"]), least), most)


def _live(objects: Objects, model: str) -> Document | None:
    """The model's Deployment. Raises ConfigError where another model, or somebody else, has its name."""
    found = objects.get("apps/v1", "Deployment", object_name(model))
    if found is None:
        return None
    owner = found["metadata"].get("labels", {}).get(MODEL_LABEL)
    if owner != model:
        raise ConfigError(
            f"the Deployment {object_name(model)} in {objects.namespace} is of {owner or 'somebody else'}",
            hint="serve one of them in another namespace",
        )
    return found


def _serving(live: Document | None) -> Release | None:
    """The release that answers: the last one, or the one before while the last has not arrived."""
    if live is None:
        return None
    return release_in(_annotations(live), RELEASE if rollout.arrived(live) else BEFORE)


def _release(live: Document) -> Release:
    found = release_in(_annotations(live), RELEASE)
    if found is None:
        name = live["metadata"]["name"]
        raise PlatformError(f"the Deployment {name} does not say what it serves", hint="deploy the model again")
    return found


def _annotations(live: Document | None) -> dict[str, str]:
    return dict((live or {}).get("metadata", {}).get("annotations") or {})


def _absent(to: Target, model: str) -> ConfigError:
    names = ", ".join(item.model.partition("@")[0] for item in deployments(to)) or "no model"
    return ConfigError(f"{model} is not in service in {to.cluster.namespace}", hint=f"there is {names}")

"""Models into service, back to the release before, and out of service.

The release is written on the Deployment, and beside it the one that served before: what is in service is what the
cluster says, and a process that was killed leaves nothing behind that another needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from medflow.errors import ConfigError, PlatformError, ServingError
from medflow.platform.kubernetes import rollout
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.objects import Objects, objects_of
from medflow.platform.kubernetes.patience import passes
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

ARRIVED = "medflow.dev/arrived"
"""On a Deployment whose release has served once, though its pods may be starting again since."""
POLL_SECONDS = 2.0
#: How often that is written down, where the Deployment changes meanwhile or the API does not answer.
MARK_TRIES = 3
#: How long pods may take to go, over what they are given.
GONE_SECONDS = 60.0
Say = Callable[[str], None]
Result = TypeVar("Result")


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
    before = _another(release, current, kept)
    known = rollout.told(to.objects)
    documents = _documents(objects, release, before, replicas=_replicas(live, release), arrived=release == current)
    reached = 1 + [document["kind"] for document in documents].index("Deployment")
    _apply(objects, documents[:reached])
    with _telling(f"{release.served.ref} is still coming", _ways_on(release, current)):
        _apply(objects, documents[reached:])
        until = time.monotonic() + release.settings.timeout
        why = _follow(to, release, known, until, say)
    if why is None:
        _mark(objects, release, before)
        return describe(_asked(lambda: _live(objects, model) or {}, until, say), to.cluster.namespace)
    failed = f"{release.served.ref} did not come into service: {why}"
    with _telling(f"{failed}; it was not taken back", _way_back(model, current)):
        _put_back(objects, model, current, kept, live)
    after = f"{current.served.ref} goes on serving" if current else "nothing served before, so it was taken away again"
    raise ServingError(f"{failed}; {after}", hint="mend what is said above, then deploy again")


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
        state="in service" if _has_arrived(live) else "coming",
        before=before.served.ref if before else None,
    )


def _follow(to: Target, release: Release, known: rollout.Told, until: float, say: Say) -> str | None:
    """Wait for new pods; None when they serve, or why they will not. Raises ServingError, and PlatformError."""
    model, said = release.served.model, ""
    while True:
        seen = _asked(lambda: rollout.look(to.objects, model, known), until, say)
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


def _asked(ask: Callable[[], Result], until: float, say: Say) -> Result:
    """What ``ask`` returns, asked again until then while the API server does not answer or is in trouble.

    Raises PlatformError after that, and at once where it refuses.
    """
    said = False
    while True:
        try:
            return ask()
        except PlatformError as error:
            if time.monotonic() > until or error.__cause__ is None or not passes(error.__cause__):
                raise
            if not said:
                say(f"{error.message}; asking again")
                said = True
        time.sleep(POLL_SECONDS)


@contextmanager
def _telling(state: str, ways: str) -> Iterator[None]:
    """Where the cluster ends this, its error tells too in what state the model is left, and how to go on."""
    try:
        yield
    except PlatformError as error:
        raise PlatformError(f"{error.message}; {state}", hint=f"{error.hint}; {ways}") from error


def _ways_on(release: Release, current: Release | None) -> str:
    again = "the same deployment again goes on with it"
    if release == current:
        return again
    if current is None:
        return f"{again}, {_way_back(release.served.model, None)}"
    return f"{again}, `medflow deploy {current.served.model} --previous` puts {current.served.ref} back"


def _way_back(model: str, current: Release | None) -> str:
    if current is None:
        return f"`medflow undeploy {model}` takes it away"
    return f"`medflow deploy {current.served.ref}` brings back what served before"


def _mark(objects: Objects, release: Release, before: Release | None) -> None:
    """Write down that a release has arrived, so that pods that start again later are not taken for its first ones.

    It serves whether that is written or not, so nothing is raised.
    """
    for _ in range(MARK_TRIES):
        try:
            live = _live(objects, release.served.model)
            annotations = _annotations(live)
            if live is None or ARRIVED in annotations or release_in(annotations, RELEASE) != release:
                return
            _apply(objects, [_marked(objects, release, before, live)])
        except PlatformError:
            time.sleep(POLL_SECONDS)
        else:
            return


def _marked(objects: Objects, release: Release, before: Release | None, live: Document) -> Document:
    """The Deployment as it is, and marked; refused where another changes or removes it at this moment."""
    documents = _documents(objects, release, before, replicas=live["spec"]["replicas"], arrived=True)
    made = next(document for document in documents if document["kind"] == "Deployment")
    made["metadata"] |= {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
    return made


def _put_back(
    objects: Objects, model: str, current: Release | None, kept: Release | None, live: Document | None
) -> None:
    if current is None:
        _remove(objects, model)
    else:
        before, replicas = _another(current, kept), _replicas(live, current)
        _apply(objects, _documents(objects, current, before, replicas=replicas, arrived=True))


def _another(release: Release, *found: Release | None) -> Release | None:
    """The first that is not the release itself: that one cannot be what served before it."""
    return next((each for each in found if each is not None and each != release), None)


def _documents(
    objects: Objects, release: Release, before: Release | None, *, replicas: int, arrived: bool
) -> list[Document]:
    documents = rendered(release, objects.namespace, replicas=replicas, before=before)
    for document in documents:
        if arrived and document["kind"] == "Deployment":
            document["metadata"]["annotations"][ARRIVED] = "true"
    return documents


def _apply(objects: Objects, documents: list[Document]) -> None:
    for document in documents:
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
    return release_in(_annotations(live), RELEASE if _has_arrived(live) else BEFORE)


def _has_arrived(live: Document) -> bool:
    """Whether its release has served once. A rollout that nobody followed to its end is not marked."""
    return ARRIVED in _annotations(live) or rollout.arrived(live)


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

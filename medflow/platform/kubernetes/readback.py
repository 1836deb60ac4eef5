"""Whether a pod is what was asked for: ZenML drops settings that it does not know, and a cluster may change others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from medflow.config.sections.place import StepPlace
from medflow.platform.kubernetes.settings import CONTAINER_SECURITY, GPU, POD_SECURITY, SCRATCH, SHM, resources

Compared = Iterator[tuple[str, Any, Any]]


def dropped(asked: StepPlace, job: dict[str, Any]) -> tuple[str, ...]:
    """What a created job lacks of what was asked: ``setting: asked …, found …``, empty where nothing is amiss."""
    spec = job["spec"]["template"]["spec"]
    own = iter(
        [
            ("timeout", asked.timeout, job["spec"].get("activeDeadlineSeconds")),
            ("retries", asked.retries, job["spec"].get("backoffLimit")),
        ]
    )
    return _told(_pod(asked, spec, spec["containers"][0]), own)


def altered(asked: StepPlace, job: dict[str, Any], pods: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """What the first of a job's pods that lacks anything lacks of what was asked, its name before it.

    A cluster's admission may change a pod between its job and itself. What it adds is passed over: tolerations of nodes
    that are not ready, the account's token, containers beside the job's.
    """
    name = job["spec"]["template"]["spec"]["containers"][0]["name"]
    for pod in pods:
        container: dict[str, Any] = next((item for item in pod["spec"]["containers"] if item["name"] == name), {})
        if lacking := _told(_pod(asked, pod["spec"], container)):
            return (f"pod {pod['metadata']['name']}, {lacking[0]}", *lacking[1:])
    return ()


def _told(*compared: Compared) -> tuple[str, ...]:
    return tuple(
        f"{name}: asked {wanted}, found {found}" for name, wanted, found in chain(*compared) if not _same(wanted, found)
    )


def _pod(asked: StepPlace, spec: dict[str, Any], container: dict[str, Any]) -> Compared:
    yield from _sizes(asked, container)
    yield from _folders(asked, spec, container)
    yield from _placement(asked, spec)
    yield from _security(spec, container)
    yield "secrets", set(asked.secrets), _secrets(container)


def _sizes(asked: StepPlace, container: dict[str, Any]) -> Compared:
    given = container.get("resources", {})
    for kind, wanted in resources(asked).items():
        for name, value in wanted.items():
            setting = "gpu" if name == GPU else name
            yield f"{setting} ({kind})", quantity(value), quantity(given.get(kind, {}).get(name))


def _folders(asked: StepPlace, spec: dict[str, Any], container: dict[str, Any]) -> Compared:
    volumes = {item["name"]: item for item in spec.get("volumes", [])}
    there = {item["mountPath"]: volumes.get(item["name"], {}) for item in container.get("volumeMounts", [])}
    mounted = {path: volume.get("emptyDir") or {} for path, volume in there.items()}
    yield "scratch", quantity(asked.scratch), quantity(mounted.get(SCRATCH, {}).get("sizeLimit"))
    if asked.shm:
        yield "shm", quantity(asked.shm), quantity(mounted.get(SHM, {}).get("sizeLimit"))
        yield "shm in memory", "Memory", mounted.get(SHM, {}).get("medium")
    for volume in asked.volumes:
        claim = there.get(volume.path, {}).get("persistentVolumeClaim") or {}
        yield f"volumes, {volume.path}", volume.claim, claim.get("claimName")


def _placement(asked: StepPlace, spec: dict[str, Any]) -> Compared:
    yield "node_selector", asked.node_selector, spec.get("nodeSelector") or {}
    wanted = [item.model_dump(mode="json", exclude_none=True) for item in asked.tolerations]
    given = spec.get("tolerations") or []
    for toleration in wanted:
        # The API server may leave a default out.
        found = [item for item in given if {"operator": "Equal", **item} == toleration]
        yield "tolerations", toleration, found[0] if found else None
    if asked.priority:
        yield "priority", asked.priority, spec.get("priorityClassName")
    if asked.runtime_class:
        yield "runtime_class", asked.runtime_class, spec.get("runtimeClassName")


def _security(spec: dict[str, Any], container: dict[str, Any]) -> Compared:
    for name, wanted in POD_SECURITY.items():
        yield f"security context, {name}", wanted, (spec.get("securityContext") or {}).get(name)
    for name, wanted in CONTAINER_SECURITY.items():
        yield f"container's security context, {name}", wanted, (container.get("securityContext") or {}).get(name)


def _secrets(container: dict[str, Any]) -> set[str]:
    return {item["secretRef"]["name"] for item in container.get("envFrom") or [] if "secretRef" in item}


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_same(value, found.get(key, value if key == "operator" else None)) for key, value in wanted.items())
    if isinstance(wanted, set):
        return isinstance(found, set) and wanted <= found
    return bool(wanted == found)


def quantity(text: str | None) -> float | None:
    """A quantity of Kubernetes as a number: bytes, or cores."""
    if text is None:
        return None
    from kubernetes.utils.quantity import parse_quantity

    return float(parse_quantity(text))

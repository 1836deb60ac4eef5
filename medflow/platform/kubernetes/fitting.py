"""Whether a step fits: a node's labels, taints and size, a quota's room, a shared memory within its limit.

Nodes and quotas are given as the API writes them, in CamelCase.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from medflow.config.sections.place import StepPlace, Toleration
from medflow.platform.kubernetes.findings import Check, Finding
from medflow.platform.kubernetes.readback import quantity
from medflow.platform.kubernetes.settings import GPU, resources

PLACE = "in the place's YAML (configs/on)"


def node_findings(step: str, asked: StepPlace, nodes: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """One finding: the first thing that no node has for this step, or the nodes that would take it."""
    labelled = [node for node in nodes if _has_labels(node, asked)]
    if not labelled:
        text = f"{step}: none of {len(nodes)} nodes has the labels {asked.node_selector}"
        yield Finding.amiss(Check.NODES, text, f"label a node, or change `node_selector` {PLACE}")
        return
    if asked.gpu and not any(_allocatable(node, GPU) >= asked.gpu for node in labelled):
        most = max(int(_allocatable(node, GPU)) for node in labelled)
        text = f"{step}: asks for {asked.gpu} GPUs, a node has at most {most} allocatable"
        yield Finding.amiss(Check.GPU, text, f"install NVIDIA's device plugin on a GPU node, or lower `gpu` {PLACE}")
        return
    # A node without the GPUs does not stand in for one that has them, and a taint.
    large = [node for node in labelled if _allocatable(node, GPU) >= asked.gpu]
    open_ = [node for node in large if not _untolerated(node, asked)]
    if not open_:
        taints = sorted({taint for node in large for taint in _untolerated(node, asked)})
        text = f"{step}: tolerates none of the nodes' taints: {', '.join(taints)}"
        yield Finding.amiss(Check.TAINTS, text, f"add the taint to `tolerations` of {step} {PLACE}")
        return
    yield from _size_finding(step, asked, open_)


def under_runtime(asked: StepPlace, runtimes: Sequence[dict[str, Any]]) -> StepPlace:
    """A step with the labels and tolerations that its runtime class gives every pod that names it."""
    for runtime in runtimes:
        if runtime["metadata"]["name"] == asked.runtime_class:
            given = runtime.get("scheduling") or {}
            labels = {**asked.node_selector, **(given.get("nodeSelector") or {})}
            more = tuple(Toleration.model_validate(_known(item)) for item in given.get("tolerations") or [])
            return asked.model_copy(update={"node_selector": labels, "tolerations": (*asked.tolerations, *more)})
    return asked


def _known(toleration: dict[str, Any]) -> dict[str, Any]:
    """A toleration without what is of no matter here: how long a pod puts up with a taint that came later."""
    return {key: value for key, value in toleration.items() if key in Toleration.model_fields}


def _size_finding(step: str, asked: StepPlace, nodes: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    wanted = {name: quantity(value) or 0.0 for name, value in resources(asked)["requests"].items()}
    fitting = [node for node in nodes if all(_allocatable(node, name) >= value for name, value in wanted.items())]
    if fitting:
        yield Finding.well(Check.NODES, f"{step}: {len(fitting)} of {len(nodes)} nodes")
    else:
        text = f"{step}: asks for {asked.cpu:g} cores and {asked.memory}, more than any node that it may run on has"
        yield Finding.amiss(Check.NODES, text, f"lower `cpu` or `memory` of {step} {PLACE}, or add a larger node")


def quota_findings(
    step: str, asked: StepPlace, orchestrator: StepPlace, quotas: Sequence[dict[str, Any]]
) -> Iterator[Finding]:
    """What the namespace's quotas leave is less than this step and the orchestrator need together."""
    for quota in quotas:
        # Of one that was just made the status is empty for a moment.
        hard, used = quota["spec"].get("hard", {}), quota.get("status", {}).get("used", {})
        for name, value in _needed(step, asked, orchestrator).items():
            left = (quantity(hard[name]) or 0.0) - (quantity(used.get(name)) or 0.0) if name in hard else None
            if left is not None and left < value:
                text = f"{step}: needs {value:g} of {name}, the quota {quota['metadata']['name']} leaves {left:g}"
                yield Finding.amiss(Check.QUOTA, text, f"raise the quota, end other pods, or lower {step} {PLACE}")


def _needed(step: str, asked: StepPlace, orchestrator: StepPlace) -> dict[str, float]:
    nodes = [asked] * asked.nodes if asked.nodes > 1 else []
    together = [*nodes, asked.waiting(), *([] if step == "orchestrator" else [orchestrator])]
    needed: dict[str, float] = {"pods": float(len(together))}
    for part in together:
        for kind, values in resources(part).items():
            for name, value in values.items():
                key = f"{kind}.{name}"
                needed[key] = needed.get(key, 0.0) + (quantity(value) or 0.0)
    # A quota may write requests of these two without their kind.
    return needed | {name: needed[f"requests.{name}"] for name in ("cpu", "memory")}


def shm_findings(step: str, asked: StepPlace) -> Iterator[Finding]:
    """Shared memory counts towards the memory limit: where it is full, the container is ended."""
    if asked.shm and (quantity(asked.shm) or 0.0) >= (quantity(asked.memory) or 0.0):
        text = f"{step}: /dev/shm of {asked.shm} is not smaller than the memory limit of {asked.memory}"
        yield Finding.amiss(Check.SHM, text, f"lower `shm` or raise `memory` of {step} {PLACE}")


def _has_labels(node: dict[str, Any], asked: StepPlace) -> bool:
    return asked.node_selector.items() <= node["metadata"].get("labels", {}).items()


def _allocatable(node: dict[str, Any], name: str) -> float:
    return quantity(node["status"].get("allocatable", {}).get(name)) or 0.0


def _untolerated(node: dict[str, Any], asked: StepPlace) -> list[str]:
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["effect"] != "PreferNoSchedule"]
    return [_shown(taint) for taint in taints if not any(_tolerates(item, taint) for item in asked.tolerations)]


def _tolerates(toleration: Any, taint: dict[str, Any]) -> bool:
    if toleration.effect not in (None, taint["effect"]) or toleration.key not in (None, taint["key"]):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == taint.get("value", "")


def _shown(taint: dict[str, Any]) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"

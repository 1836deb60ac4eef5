"""Why a step does not run, in one line, from what the cluster says of its job, pods and events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from medflow.config.sections.place import StepPlace
from medflow.errors import ConfigError, DataError, TrainingError
from medflow.platform.kubernetes.cluster import Observed
from medflow.platform.kubernetes.readback import altered, dropped
from medflow.platform.kubernetes.settings import HOPELESS

KILLED = 137
#: What depends on settings, data and code alone; sources, models' weights and servers may come back.
FOR_GOOD = frozenset(kind.exit_code for kind in (ConfigError, DataError, TrainingError))
#: Words of what the API server will say of a pod however often its job tries: for what it refuses it, and what to do.
REFUSED = {
    "violates PodSecurity": ("by Pod Security", "medflow's pods meet `restricted`: look at what changes them"),
    "no PriorityClass": ("for its `priority`", "apply infra/kubernetes, or name another one in the place's YAML"),
    "RuntimeClass": ("for its `runtime_class`", "make the class, or name another one in the place's YAML"),
}
NO_ACCOUNT = "error looking up service account"
#: An account may be made a moment after the first pod.
ACCOUNT_GRACE = timedelta(minutes=3)
QUOTA = "exceeded quota"


def fatal(seen: Observed, asked: StepPlace | None = None) -> str | None:
    """What no waiting and no retry can cure, or None."""
    return _dropped(seen, asked) or _out_of_memory(seen) or _refused(seen) or _image(seen)


def raised_for_good(seen: Observed) -> bool:
    """Whether a step raised what another try would raise again: it says so by its exit code (`entrypoint`)."""
    return any(state.get("exitCode") in FOR_GOOD for pod in seen.pods for state in _terminated(pod))


def ended(seen: Observed) -> str | None:
    """Why a job that is over has failed, as far as the cluster tells; None where it is not over, or has succeeded."""
    condition = _condition(seen.job, "Failed")
    if condition is None:
        return None
    if condition.get("reason") == "DeadlineExceeded":
        seconds = seen.job["spec"].get("activeDeadlineSeconds")
        because = pending(seen)
        return f"not done within its timeout of {seconds} s" + (f"; it waited: {because}" if because else "")
    return _out_of_memory(seen) or _exit(seen) or f"{condition.get('reason')}: {condition.get('message')}"


def pending(seen: Observed) -> str | None:
    """What a job waits for that may still come: a pod, a node, room in a quota, an image, a volume."""
    for event in reversed(_refusals(seen)):
        what = "no room in the quota" if QUOTA in event.get("message", "") else "its pod cannot be made"
        return f"{what}: {_message(event)}"
    for pod in reversed(seen.pods):
        condition = next((item for item in _conditions(pod) if item["type"] == "PodScheduled"), {})
        if condition.get("status") == "False":
            return f"unschedulable: {condition.get('message', '')}"
    scheduling = [event for event in seen.events if event.get("reason") == "FailedScheduling"]
    if scheduling and not any(pod.get("spec", {}).get("nodeName") for pod in seen.pods):
        return f"unschedulable: {_message(scheduling[-1])}"
    image = next((f"{reason}: {text}" for reason, text in _waiting(seen) if reason.startswith("Err")), None)
    return image or _creating(seen)


def succeeded(seen: Observed) -> bool:
    """Whether as many pods have as must; the job itself says so two or three seconds later."""
    done = sum(pod.get("status", {}).get("phase") == "Succeeded" for pod in seen.pods)
    return _condition(seen.job, "Complete") is not None or done >= seen.job.get("spec", {}).get("completions", 1)


def over(seen: Observed) -> bool:
    return succeeded(seen) or _condition(seen.job, "Failed") is not None


def _dropped(seen: Observed, asked: StepPlace | None) -> str | None:
    if asked is None:
        return None
    if lacking := dropped(asked, seen.job):
        return f"its pod is not what was asked for: {'; '.join(lacking)}"
    if lacking := altered(asked, seen.job, seen.pods):
        return f"the cluster made another pod than was asked for: {'; '.join(lacking)}; look at its admission webhooks"
    return None


def _out_of_memory(seen: Observed) -> str | None:
    for pod in seen.pods:
        for state in _terminated(pod):
            if state.get("reason") == "OOMKilled":
                limit = _limit(pod)
                return f"OOMKilled (exit code {state.get('exitCode', KILLED)}) at its memory limit of {limit}; {MORE}"
    return None


MORE = "raise its `memory` in the place's YAML (configs/on)"


def _exit(seen: Observed) -> str | None:
    for pod in reversed(seen.pods):
        for state in _terminated(pod):
            if state.get("exitCode") == KILLED:
                return (
                    f"its container was killed (exit code 137, {state.get('reason')}); where nobody did, "
                    f"the memory limit of {_limit(pod)} was reached: {MORE}"
                )
            if state.get("exitCode"):
                return f"its container ended with exit code {state['exitCode']}"
    return None


def _refused(seen: Observed) -> str | None:
    told = _refusals(seen)
    for event in reversed(told):
        for words, (by, remedy) in REFUSED.items():
            if words in event.get("message", ""):
                return f"refused {by}: {_message(event)}; {remedy}"
    without = [event for event in told if NO_ACCOUNT in event.get("message", "")]
    if without and datetime.now(UTC) - _first(without[0]) > ACCOUNT_GRACE:
        remedy = "apply infra/kubernetes, or name another account in the stack's YAML"
        return f"refused for its service account: {_message(without[-1])}; {remedy}"
    return None


def _refusals(seen: Observed) -> list[dict[str, Any]]:
    """What was said of pods that could not be made since the newest one was; oldest first."""
    events = [event for event in seen.events if event.get("reason") == "FailedCreate"]
    if not seen.pods:
        return events
    made = max(_moment(pod["metadata"].get("creationTimestamp")) for pod in seen.pods)
    return [event for event in events if _last(event) > made]


def _creating(seen: Observed) -> str | None:
    """Why a container is not made: a volume that does not answer, a network that has no address left."""
    if not any(reason in ("ContainerCreating", "PodInitializing") for reason, _ in _waiting(seen)):
        return None
    pod = seen.pods[-1]["metadata"]["name"]
    warnings = [e for e in seen.events if e.get("type") == "Warning" and e["involvedObject"].get("name") == pod]
    return f"{warnings[-1].get('reason')}: {_message(warnings[-1])}" if warnings else None


def _image(seen: Observed) -> str | None:
    for reason, text in _waiting(seen):
        if reason in HOPELESS:
            return f"{reason}, image {seen.pods[-1]['spec']['containers'][0].get('image')}: {text}"
    return None


def _waiting(seen: Observed) -> Iterator[tuple[str, str]]:
    for pod in seen.pods[-1:]:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            waiting = (status.get("state") or {}).get("waiting")
            if waiting:
                yield str(waiting.get("reason")), " ".join(str(waiting.get("message", "")).split())


def _terminated(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            if "terminated" in state:
                yield state["terminated"]


def _limit(pod: dict[str, Any]) -> str:
    return str(pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory", "the node"))


def _conditions(item: dict[str, Any]) -> list[dict[str, Any]]:
    return item.get("status", {}).get("conditions") or []


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((item for item in _conditions(job) if item["type"] == kind and item["status"] == "True"), None)


def _message(event: dict[str, Any]) -> str:
    return " ".join(str(event.get("message", "")).split())


BEFORE = datetime.min.replace(tzinfo=UTC)


def _moment(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else BEFORE


def _first(event: dict[str, Any]) -> datetime:
    return _moment(event.get("firstTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp"))


def _last(event: dict[str, Any]) -> datetime:
    return max(_first(event), _moment(event.get("lastTimestamp")))

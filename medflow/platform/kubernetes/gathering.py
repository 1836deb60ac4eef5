"""What pods say and are, gathered while they are there and written down as files.

For each pod ``NAME.log`` and ``NAME.json``, and all events in one file.
"""

from __future__ import annotations

import json
import time
from typing import Any

from medflow.platform.kubernetes.cluster import Cluster, Observed, last_seen
from medflow.tracking import Files

#: A running pod's log is read so often, because a pod that is deleted takes its log with it.
READ_EVERY_SECONDS = 15.0


class Gathered:
    def __init__(self, here: Cluster) -> None:
        self.here = here
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self._read: dict[str, float] = {}
        self._complete: set[str] = set()

    def note(self, seen: Observed) -> None:
        """Remember what a job's pods and events say now."""
        for event in seen.events:
            self.events[event["metadata"]["uid"]] = event
        for pod in seen.pods:
            name = pod["metadata"]["name"]
            self.pods[name] = pod
            if self._is_due(name, pod):
                self._read_log(name, pod)

    def forget_reading(self) -> None:
        """Read every log once more at the next note."""
        self._read.clear()
        self._complete.clear()

    def write(self, files: Files, events: str) -> None:
        """Write all of it, the events under the name that is given."""
        for name in self.pods:
            self.write_pod(files, name)
        items = sorted(self.events.values(), key=last_seen)
        files.write(events, json.dumps(items, indent=1).encode())

    def write_pod(self, files: Files, name: str) -> None:
        """Write what one pod is, and what it has said if it has started."""
        if name in self.logs:
            files.write(f"{name}.log", self.logs[name].encode())
        files.write(f"{name}.json", json.dumps(_without_environment(self.pods[name]), indent=1).encode())

    def _read_log(self, name: str, pod: dict[str, Any]) -> None:
        said = self.here.log(name)
        self.logs[name] = said or self.logs.get(name, "")
        if said is not None and has_ended(pod):
            self._complete.add(name)

    def _is_due(self, name: str, pod: dict[str, Any]) -> bool:
        if name in self._complete:  # whoever has ended says no more, and may have said much
            return False
        due = time.monotonic() - self._read.get(name, 0.0) > READ_EVERY_SECONDS
        if pod["status"].get("phase") == "Pending" or not (due or is_over(pod)):
            return False
        self._read[name] = time.monotonic()
        return True


def is_over(pod: dict[str, Any]) -> bool:
    """Whether a pod has ended, or is being removed."""
    return bool(pod["metadata"].get("deletionTimestamp")) or has_ended(pod)


def has_ended(pod: dict[str, Any]) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _without_environment(pod: dict[str, Any]) -> dict[str, Any]:
    """Without the containers' variables, which may hold what nobody else should read."""
    spec = pod["spec"]
    containers = [{key: value for key, value in item.items() if key != "env"} for item in spec["containers"]]
    return {**pod, "spec": {**spec, "containers": containers}}

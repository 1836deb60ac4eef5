"""A TrainJob in a cluster: start it, look at it, take it away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from medflow.config.sections.place import StepPlace
from medflow.errors import PlatformError
from medflow.platform.kubernetes import trainjobs
from medflow.platform.kubernetes.cluster import CONFLICT, NOT_FOUND, Cluster, Observed
from medflow.platform.kubernetes.trainjobs import GROUP, JOBS, RUNTIMES, VERSION, Training

if TYPE_CHECKING:
    from kubernetes.client import ApiException, CustomObjectsApi

COMPLETE: Final = "Complete"
FAILED: Final = "Failed"
#: In the order of their removal: a runtime stays while a job uses it.
KINDS = (JOBS, RUNTIMES)
#: Pods that are ended have `trainjobs.GRACE_SECONDS`; a node that is not ready takes longer.
REMOVAL_SECONDS = 300.0
#: Trainer takes no job whose runtime it has not heard of, which takes it a moment after that is made.
KNOWN_SECONDS = 60.0
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class TrainingApi:
    here: Cluster
    training: Training

    @cached_property
    def expected(self) -> StepPlace:
        """What the Job of the nodes must be like: the JobSet does the retries."""
        return self.training.asked.model_copy(update={"retries": 0})

    def start(self) -> None:
        """Make its objects, once ``remove`` has left none. A second call makes what the first did not."""
        from kubernetes.client import ApiException

        self._create(RUNTIMES, trainjobs.runtime(self.training))
        until = time.monotonic() + KNOWN_SECONDS
        while True:
            try:
                return self._create(JOBS, trainjobs.train_job(self.training))
            except ApiException as error:
                if not self._is_of_an_unknown_runtime(error) or time.monotonic() > until:
                    raise
            time.sleep(POLL_SECONDS)

    def remove(self) -> None:
        """Return once its objects and pods are gone. Raises PlatformError where they stay."""
        for kind in KINDS:
            self._delete(kind)
        until = time.monotonic() + REMOVAL_SECONDS
        while any(self._object(kind) for kind in KINDS) or self._pods():
            if time.monotonic() > until:
                raise PlatformError(
                    f"the pods of {self.training.name} have not ended in {REMOVAL_SECONDS:.0f} s",
                    hint="look whether their node is ready: `kubectl get nodes`",
                )
            time.sleep(POLL_SECONDS)

    def job(self) -> Observed | None:
        """The Job of the nodes with its pods; None before it is made, and between two attempts."""
        return self.here.job(self.training.job)

    def outcome(self) -> str | None:
        """``COMPLETE``, ``FAILED`` or None."""
        found = self._object(JOBS)
        conditions = [] if found is None else found.get("status", {}).get("conditions") or []
        true = {item["type"] for item in conditions if item["status"] == "True"}
        return next((kind for kind in (COMPLETE, FAILED) if kind in true), None)

    def seconds_left(self) -> float:
        """Until the deadline of the step that waits."""
        own = self.here.own_pod()
        job = self.here.job(own["metadata"]["labels"]["job-name"])
        started = job.job["status"]["startTime"] if job else own["status"]["startTime"]
        gone = datetime.now(UTC) - datetime.fromisoformat(started.replace("Z", "+00:00"))
        return self.training.asked.timeout - gone.total_seconds()

    @property
    def _custom(self) -> CustomObjectsApi:
        from kubernetes.client import CustomObjectsApi

        return CustomObjectsApi(self.here.core.api_client)

    def _object(self, kind: str) -> dict[str, Any] | None:
        from kubernetes.client import ApiException

        name = self.training.name
        try:
            found: dict[str, Any] = self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self.here.namespace, kind, name
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return found

    def _create(self, kind: str, body: dict[str, Any]) -> None:
        from kubernetes.client import ApiException

        try:
            self._custom.create_namespaced_custom_object(GROUP, VERSION, self.here.namespace, kind, body)
        except ApiException as error:
            # The name is of this run and step alone: it was made, and the answer was lost.
            if error.status != CONFLICT:
                raise

    def _is_of_an_unknown_runtime(self, error: ApiException) -> bool:
        words = str(error.body or "")
        return "admission webhook" in words and self.training.name in words and "not found" in words

    def _delete(self, kind: str) -> None:
        from kubernetes.client import ApiException

        try:
            self._custom.delete_namespaced_custom_object(GROUP, VERSION, self.here.namespace, kind, self.training.name)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    def _pods(self) -> list[Any]:
        selector = ",".join(f"{key}={self.training.labels[key]}" for key in ("medflow.dev/run", "medflow.dev/step"))
        found: list[Any] = self.here.core.list_namespaced_pod(self.here.namespace, label_selector=selector).items
        return found

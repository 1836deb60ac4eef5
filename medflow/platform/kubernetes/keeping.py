"""Logs, states and events of every pod of a run, kept in the artifact store when the pods are gone.

They lie at ``<store>/runs/<run id>/pods``: for each pod ``NAME.log`` and ``NAME.json``, and all events in
``events.json``. The run's metadata names the folder (``pods``) and, by step, why one failed (``failure of STEP``).
"""

from __future__ import annotations

import posixpath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zenml.client import Client
from zenml.enums import MetadataResourceTypes
from zenml.logger import get_logger
from zenml.models import RunMetadataResource

from medflow.platform.context import StoredFiles
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.gathering import Gathered, is_over

if TYPE_CHECKING:
    from zenml.artifact_stores import BaseArtifactStore

logger = get_logger(__name__)
FOLDER = "pods"
FAILURE = "failure of "
RUN_LABEL = "run_id"


def folder(store_path: str, run_id: str) -> str:
    """Where a run's logs and events lie."""
    return posixpath.join(store_path, "runs", run_id, FOLDER)


class Keeper(Gathered):
    """Gathers while the run goes on, writes of a pod when it is over, and all once more at the end of the block."""

    def __init__(self, here: Cluster, store: BaseArtifactStore) -> None:
        super().__init__(here)
        self.store = store
        self.run_id = ""
        self._written: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._gather_orchestrator()
            self._write()
        except Exception as problem:  # the run is over, and its outcome does not hang on this
            logger.warning("Logs and events of the pods were not kept: %s", problem)

    def note(self, seen: Observed) -> None:
        """Remember what a job's pods and events say now, and which run it is of."""
        self._know_run(seen)
        super().note(seen)
        for pod in seen.pods:
            if is_over(pod):
                self._keep(pod["metadata"]["name"])

    def latest(self, seen: Observed) -> Observed:
        """The same job now, with the pods as they were last seen where the cluster has removed them."""
        now = self.here.job(seen.name) or seen
        known = [pod for pod in self.pods.values() if pod["metadata"].get("labels", {}).get("job-name") == seen.name]
        about = {seen.name, *(pod["metadata"]["name"] for pod in known)}
        events = [event for event in self.events.values() if event["involvedObject"].get("name") in about]
        return Observed(now.job, now.pods or tuple(known), tuple(events))

    def failed(self, seen: Observed, reason: str | None) -> None:
        """Write why a step failed into the run's metadata, for whoever reads it later."""
        self.note(seen)
        if seen.step and reason:
            self._tell({f"{FAILURE}{seen.step}": reason})

    def lost(self, step: str | None, reason: str) -> None:
        """Write why a step failed that the cluster tells nothing of any more."""
        if step and self.run_id:
            self._tell({f"{FAILURE}{step}": reason})

    def _keep(self, name: str) -> None:
        """Now, since this pod may be lost as well, and what it alone knows with it."""
        if name in self._written:
            return
        try:
            self.write_pod(self._files(), name)
            self._written.add(name)
        except Exception as problem:  # the store is away for a moment; at the end all is written once more
            logger.warning("The log of %s is not kept yet: %s", name, problem)

    def _files(self) -> StoredFiles:
        return StoredFiles(self.store, folder(self.store.path, self.run_id))

    def _know_run(self, seen: Observed) -> None:
        if not self.run_id:
            self.run_id = seen.job["metadata"]["labels"][RUN_LABEL]
            self._tell({FOLDER: folder(self.store.path, self.run_id)})

    def _tell(self, metadata: dict[str, Any]) -> None:
        resource = RunMetadataResource(id=self.run_id, type=MetadataResourceTypes.PIPELINE_RUN)
        try:
            Client().create_run_metadata(metadata=metadata, resources=[resource])
        except Exception as problem:  # a server that is away for a moment; the orchestrator's log has the same words
            logger.warning("Not noted in the run's metadata: %s (%s)", metadata, type(problem).__name__)

    def _gather_orchestrator(self) -> None:
        """This pod's own job, which has no check of ZenML's, and the step pods once more."""
        job = self.here.job(self.here.own_pod()["metadata"]["labels"]["job-name"])
        if job is None:
            return
        self.run_id = self.run_id or job.job["metadata"].get("annotations", {}).get("zenml.io/run-id", "")
        self.forget_reading()
        for seen in (job, *self.here.jobs(self.run_id)):
            self.note(seen)

    def _write(self) -> None:
        if not self.run_id:
            return
        self.write(self._files(), "events.json")

"""ZenML's start and check of one step's job, with ours around them, so that an API server may be away for a while.

ZenML's runner of a DAG takes every error of either for the end of the step, and so of the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kubernetes.client import ApiException
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import kube_utils
from zenml.logger import get_logger
from zenml.orchestrators.dag_runner import DagRunner, NodeStatus

from medflow.config.sections.place import StepPlace
from medflow.errors import PlatformError
from medflow.platform.kubernetes import reasons
from medflow.platform.kubernetes.cluster import CONFLICT, NOT_FOUND, STEP_ANNOTATION, Cluster, refused
from medflow.platform.kubernetes.keeping import RUN_LABEL, Keeper
from medflow.platform.kubernetes.patience import Outages, patiently
from medflow.platform.kubernetes.settings import STARTS_NODES

logger = get_logger(__name__)
Status = tuple[kube_utils.JobStatus, str | None]
GOES_ON: Status = (kube_utils.JobStatus.RUNNING, None)
GONE = "its job was removed from the cluster, by nobody who stopped the run"
ENDING = (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED, ExecutionStatus.FAILED)


class PatientRunner(DagRunner):
    """ZenML's, where a ZenML server that is away for a while costs no step either."""

    def __init__(self, *, ended: threading.Event, **given: Any) -> None:
        super().__init__(**given)
        # Nobody waits for an answer when the run has ended.
        self.shutdown_event = ended
        outages, start, look = Outages(logger.warning), self.node_startup_function, self.node_monitoring_function
        self.node_startup_function = lambda node: patiently(lambda: start(node), logger.warning, given_up=ended)
        self.node_monitoring_function = lambda node: outages.look(node.id, lambda: look(node), NodeStatus.RUNNING)


class Monitor:
    """The jobs of one run's steps."""

    def __init__(
        self, here: Cluster, keeper: Keeper, asked: dict[str, StepPlace], ended: threading.Event | None = None
    ) -> None:
        self.here, self.keeper, self.asked = here, keeper, asked
        self.ended = ended or threading.Event()
        self._outages = Outages(logger.warning)
        self._steps: dict[str, str] = {}
        self._one_has_failed = False

    def starting(self, create: Callable[..., Any]) -> Callable[..., Any]:
        """ZenML's creation of a job, which is tried again while there is no answer."""

        def started(*, batch_api: Any, namespace: str, job_manifest: Any, **rest: Any) -> Any:
            self._steps[job_manifest.metadata.name] = job_manifest.metadata.annotations[STEP_ANNOTATION]

            def once() -> Any:
                try:
                    return create(batch_api=batch_api, namespace=namespace, job_manifest=job_manifest, **rest)
                except ApiException as error:
                    # It was made, and the answer was lost.
                    if error.status == CONFLICT and self._is_there(job_manifest):
                        return job_manifest
                    raise

            return patiently(once, logger.warning, given_up=self.ended)

        return started

    def checking(self, check: Callable[..., Status]) -> Callable[..., Status]:
        """ZenML's check of a job, every few seconds, with ours before it and the reason of a failure after it."""

        def checked(*, job_name: str, **rest: Any) -> Status:
            def look() -> Status:
                return self._look(job_name, lambda: check(job_name=job_name, **rest))

            try:
                found = self._outages.look(job_name, look, GOES_ON)
            except PlatformError as error:
                found = self._lost(job_name, error.message)
            except ApiException as error:
                if error.status == NOT_FOUND and self._is_ending():
                    raise
                found = self._lost(job_name, GONE if error.status == NOT_FOUND else refused(error).message)
            self._one_has_failed |= found[0] == kube_utils.JobStatus.FAILED
            return found

        return checked

    def _look(self, name: str, check: Callable[[], Status]) -> Status:
        seen = self.here.job(name)
        if seen is None:
            return check()
        self._steps[name] = seen.step or ""
        self.keeper.note(seen)
        reason = reasons.fatal(seen, self.asked.get(seen.step or ""))
        if reason:
            # In this order, as where the answer about the job's removal is lost there is no job to tell of any more.
            self.keeper.failed(seen, reason)
            self._remove(name)
            return kube_utils.JobStatus.FAILED, reason
        if reasons.raised_for_good(seen):
            # The step has told the server why; its job would only try again.
            self._remove(name)
            return kube_utils.JobStatus.FAILED, "the step raised an error that no retry can cure"
        if reasons.succeeded(seen):
            return kube_utils.JobStatus.SUCCEEDED, None
        status, message = check()
        if status == kube_utils.JobStatus.FAILED:
            message = reasons.ended(self.keeper.latest(seen)) or message
            self.keeper.failed(seen, message)
            if _starts_nodes(seen.job):
                # Nodes go with the pod that started them, which may have been killed before it took them away.
                self._remove(name)
        return status, message

    def _is_ending(self) -> bool:
        """Whether who removed a job has said why: a run that is stopped, or of which a step has failed."""
        if self._one_has_failed or not self.keeper.run_id:
            return True
        run = patiently(lambda: Client().get_pipeline_run(self.keeper.run_id), logger.warning, given_up=self.ended)
        return run.status in ENDING

    def _lost(self, name: str, reason: str) -> Status:
        self.keeper.lost(self._steps.get(name), reason)
        return kube_utils.JobStatus.FAILED, reason

    def _remove(self, name: str) -> None:
        patiently(lambda: self.here.delete_job(name), logger.warning, given_up=self.ended)

    def _is_there(self, manifest: Any) -> bool:
        """Whether the job of this name is that of the same step of the same run."""
        found = self.here.job(manifest.metadata.name)
        if found is None:
            return False
        asked = (manifest.metadata.annotations[STEP_ANNOTATION], manifest.metadata.labels[RUN_LABEL])
        return asked == (found.step, found.job["metadata"]["labels"].get(RUN_LABEL))


def _starts_nodes(job: dict[str, Any]) -> bool:
    labels = job["spec"]["template"].get("metadata", {}).get("labels") or {}
    return STARTS_NODES.items() <= labels.items()

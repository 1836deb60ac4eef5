"""What the Kubernetes API says of a run, as plain JSON: its jobs, their pods, and the events about both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from medflow.errors import PlatformError

if TYPE_CHECKING:
    from kubernetes.client import ApiException, BatchV1Api, CoreV1Api

Result = TypeVar("Result")
STEP_ANNOTATION = "zenml.io/step-name"
ORCHESTRATOR_ANNOTATION = "zenml.io/orchestrator"
NOT_FOUND = 404
CONFLICT = 409
#: Bytes of one pod's log that are kept; the last ones.
LOG_BYTES = 5_000_000
#: What a node answers, as if the pod had said it, once the container is removed and the pod is not.
LOG_GONE = "unable to retrieve container logs for "


@dataclass(frozen=True)
class Observed:
    """One job with its pods, oldest first, and the events about it and them. As the API writes them, in CamelCase."""

    job: dict[str, Any]
    pods: tuple[dict[str, Any], ...] = ()
    events: tuple[dict[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def step(self) -> str | None:
        """The step that this job runs; None for the orchestrator's."""
        return self.job["metadata"].get("annotations", {}).get(STEP_ANNOTATION)


@dataclass(frozen=True)
class Cluster:
    """A namespace of a cluster."""

    core: CoreV1Api
    batch: BatchV1Api
    namespace: str

    def jobs(self, run_id: str) -> tuple[Observed, ...]:
        """Every job of a run, the orchestrator's first."""
        items = self._asked(self.batch.list_namespaced_job, label_selector=f"run_id={run_id}")
        pods, events = self._pods(f"run_id={run_id}"), self.events()
        found = [_observed(job, pods, events) for job in items]
        return tuple(sorted(found, key=lambda item: (item.step is not None, item.job["metadata"]["creationTimestamp"])))

    def job(self, name: str) -> Observed | None:
        """One job, or None where it is gone."""
        job = self._unless_absent(lambda: self._asked(self.batch.read_namespaced_job, name))
        if job is None:
            return None
        pods = self._pods(f"job-name={name}")
        names = (name, *(pod["metadata"]["name"] for pod in pods))
        # Not all of the namespace: a run looks every second, and others' events are thousands.
        return Observed(job, tuple(pods), tuple(self.events(*names)))

    def pods(self, run_id: str) -> list[dict[str, Any]]:
        """Every pod of a run, those included whose job is gone."""
        return self._pods(f"run_id={run_id}")

    def cron_jobs(self, label: str) -> list[dict[str, Any]]:
        """Every CronJob that has a label."""
        found: list[dict[str, Any]] = self._asked(self.batch.list_namespaced_cron_job, label_selector=label)
        return found

    def cron_job(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._asked(self.batch.read_namespaced_cron_job, name)
        return found

    def jobs_of(self, cron_job: dict[str, Any], events: list[dict[str, Any]]) -> tuple[Observed, ...]:
        """The jobs of a CronJob, oldest first."""
        owner = cron_job["metadata"]["uid"]
        items = self._asked(self.batch.list_namespaced_job)
        own = [job for job in items if owner in {item["uid"] for item in job["metadata"].get("ownerReferences", [])}]
        found = [_observed(job, self._pods(f"job-name={job['metadata']['name']}"), events) for job in own]
        return tuple(sorted(found, key=lambda item: str(item.job["metadata"]["creationTimestamp"])))

    def patch_cron_job(self, name: str, body: dict[str, Any]) -> None:
        self.batch.patch_namespaced_cron_job(name, self.namespace, body)

    def delete_cron_job(self, name: str) -> None:
        """With its jobs and their pods; one that is gone is no error."""
        self._unless_absent(
            lambda: self.batch.delete_namespaced_cron_job(name, self.namespace, propagation_policy="Background")
        )

    def own_pod(self) -> dict[str, Any]:
        """The pod that this process runs in."""
        found: dict[str, Any] = self._asked(self.core.read_namespaced_pod, pod_name())
        return found

    def own_job(self) -> Observed:
        """The job of the pod that this process runs in."""
        job = self.job(self.own_pod()["metadata"]["labels"]["job-name"])
        if job is None:
            raise PlatformError("the job of this pod is gone", hint="nothing is to be done: the pod ends with it")
        return job

    def events(self, *about: str) -> list[dict[str, Any]]:
        """Those about the objects of these names, or all of the namespace; oldest first."""
        selectors = [f"involvedObject.name={name}" for name in about] or [""]
        found = [
            event
            for selector in selectors
            for event in self._asked(self.core.list_namespaced_event, field_selector=selector)
        ]
        return sorted(found, key=last_seen)

    def log(self, pod: str) -> str | None:
        """The last part of a pod's log, or None where the pod is gone, has not started, or its node does not answer."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            response = self.core.read_namespaced_pod_log(
                pod, self.namespace, timestamps=True, tail_lines=50_000, _preload_content=False
            )
            said = bytes(response.data[-LOG_BYTES:]).decode(errors="replace")
        except (ApiException, HTTPError, OSError):
            return None
        return None if said.startswith(LOG_GONE) else said

    def delete_job(self, name: str) -> None:
        """With its pods; one that is gone is no error."""
        self._unless_absent(
            lambda: self.batch.delete_namespaced_job(name, self.namespace, propagation_policy="Background")
        )

    def delete_secret(self, name: str) -> None:
        """One that is gone is no error."""
        self._unless_absent(lambda: self.core.delete_namespaced_secret(name, self.namespace))

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._asked(self.core.list_namespaced_pod, label_selector=selector)
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def _asked(self, call: Callable[..., Any], *words: str, **selected: str) -> Any:
        """What a call for this namespace is answered, as the API wrote it; of a list its items.

        The client's models of the answer cost fifteen times the work of reading it.
        """
        plain = json.loads(call(*words, self.namespace, _preload_content=False, **selected).data)
        return plain.get("items", plain)

    def _unless_absent(self, ask: Callable[[], Result]) -> Result | None:
        from kubernetes.client import ApiException

        try:
            return ask()
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise


@contextmanager
def refusals_told() -> Iterator[None]:
    """Within this block what the API server refuses, or leaves unanswered, is a PlatformError."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise refused(error) from error
    except HTTPError as error:
        raise PlatformError(
            f"the cluster's API server does not answer: {type(error).__name__}",
            hint="check that the cluster runs, and KUBECONFIG",
        ) from error


def refused(error: ApiException) -> PlatformError:
    """What the API server refuses, in its words, and what to do."""
    words = _said(str(error.body or ""))
    is_admission = any(sign in words for sign in NOT_ADMITTED)
    return PlatformError(
        f"the cluster refuses ({error.status} {error.reason}): {words}",
        hint=API_SERVERS if is_admission else REMEDIES.get(error.status, API_SERVERS),
    )


API_SERVERS = "the words are the API server's own"
#: Signs of what is forbidden whatever rights one has.
NOT_ADMITTED = ("admission webhook", "exceeded quota", "violates PodSecurity")
REMEDIES = {
    401: "sign in to the cluster anew: its credentials have run out, or are of another cluster",
    403: "bind the role medflow-client (infra/kubernetes/base/roles.yaml) to who the context signs in as; a pod's "
    "account has the role of its own name",
}


def _said(body: str) -> str:
    """The words of an answer, which is JSON where the API server itself wrote it."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300]


def connect(context: str, namespace: str) -> Cluster:
    """From this machine, by a context of the kubeconfig. Raises PlatformError where there is none of that name."""
    from kubernetes import client, config

    from medflow.platform.kubernetes import transport

    try:
        with transport.limited():
            api = config.new_client_from_config(context=context)
    except config.ConfigException as error:
        raise PlatformError(
            f"the kubeconfig has no usable context {context!r}: {error}",
            hint="`kubectl config get-contexts` lists them; KUBECONFIG names the file",
        ) from error
    return Cluster(client.CoreV1Api(api), client.BatchV1Api(api), namespace)


def inside(namespace: str) -> Cluster:
    """From a pod, with its service account."""
    from kubernetes import client, config

    from medflow.platform.kubernetes import transport

    config.load_incluster_config()
    with transport.limited():
        api = client.ApiClient()
    return Cluster(client.CoreV1Api(api), client.BatchV1Api(api), namespace)


def pod_name() -> str:
    """The pod that this process runs in."""
    return os.environ["HOSTNAME"]


def last_seen(event: dict[str, Any]) -> str:
    """When an event was last seen, to sort by; events of one occurrence have a time of another name."""
    # Without its Z a whole second comes before its parts.
    return str(event.get("lastTimestamp") or event.get("eventTime") or "").removesuffix("Z")


def _observed(job: dict[str, Any], pods: list[dict[str, Any]], events: list[dict[str, Any]]) -> Observed:
    name = job["metadata"]["name"]
    own = tuple(pod for pod in pods if pod["metadata"].get("labels", {}).get("job-name") == name)
    about = {name, *(pod["metadata"]["name"] for pod in own)}
    return Observed(job, own, tuple(event for event in events if event["involvedObject"].get("name") in about))

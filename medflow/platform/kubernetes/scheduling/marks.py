"""What medflow writes on a CronJob, to know it again and to tell what has changed since.

ZenML builds the CronJob; what it leaves out is put in on the way, so that none ever stands without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import Field
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator as zenml_orchestrator

from medflow.platform.scheduling.records import Frozen, Timing
from medflow.records import Record, digest_of

#: A label of CronJobs and of their jobs.
SCHEDULE = "medflow/schedule"
_PREFIX = "medflow/"
#: The digest of the pods' template as the API server completed it; it is known when the CronJob stands.
TEMPLATE = f"{_PREFIX}template"
SINCE = f"{_PREFIX}since"
#: ZenML's id of the schedule, also known only then.
SCHEDULE_ID = f"{_PREFIX}schedule_id"


class Marks(Record):
    """Annotations of a CronJob."""

    stack: str
    image: str
    code: str
    settings: str
    key: str = Field(pattern=r"^[^/]+/[^/]+/[^/]+$")
    """As `credentials.ours` tells it."""
    schedule_id: str = Field("", pattern=r"^[0-9a-f-]{36}$|^$")
    since: datetime
    template: str = ""

    @property
    def frozen(self) -> Frozen:
        return Frozen(image=self.image, code=self.code, settings=self.settings)

    def annotations(self) -> dict[str, str]:
        return {f"{_PREFIX}{name}": str(value) for name, value in self.model_dump(mode="json").items()}

    @classmethod
    def of(cls, cron_job: dict[str, Any]) -> Marks | None:
        """Those of a CronJob; None where somebody has removed one or written over it."""
        given = cron_job["metadata"].get("annotations", {})
        try:
            return cls.model_validate({name: given[f"{_PREFIX}{name}"] for name in cls.model_fields})
        except (KeyError, ValueError):
            return None


def cron_job_name(stack: str, name: str) -> str:
    """At most 52 characters, and another one for each stack: several may share a namespace."""
    return f"medflow-{name}-{digest_of(stack)[:6]}"


def template_digest(cron_job: dict[str, Any]) -> str:
    """Of what a CronJob's pods are made from."""
    return digest_of(cron_job["spec"]["jobTemplate"]["spec"])


def patch_of(timing: Timing) -> dict[str, Any]:
    """A CronJob's `spec` as far as it can change in place."""
    return {
        "schedule": timing.cron,
        "timeZone": timing.time_zone,
        "suspend": timing.paused,
        "concurrencyPolicy": timing.overlap,
        "startingDeadlineSeconds": timing.start_within,
        "successfulJobsHistoryLimit": timing.succeeded_kept,
        "failedJobsHistoryLimit": timing.failed_kept,
    }


def timing_of(cron_job: dict[str, Any]) -> Timing:
    spec = cron_job["spec"]
    return Timing(
        cron=spec["schedule"],
        time_zone=spec.get("timeZone"),
        paused=bool(spec.get("suspend")),
        overlap=spec.get("concurrencyPolicy"),
        start_within=spec.get("startingDeadlineSeconds"),
        succeeded_kept=spec.get("successfulJobsHistoryLimit"),
        failed_kept=spec.get("failedJobsHistoryLimit"),
    )


@contextmanager
def marked(name: str, marks: Marks, timing: Timing) -> Iterator[None]:
    """Within this block the CronJob that ZenML makes has medflow's name, marks and timing."""
    build = zenml_orchestrator.build_cron_job_manifest

    def build_marked(**given: Any) -> Any:
        from kubernetes import client

        manifest = build(**given)
        template = manifest.spec.job_template
        template.metadata.labels = {**(template.metadata.labels or {}), SCHEDULE: name}
        manifest.metadata = client.V1ObjectMeta(
            name=cron_job_name(marks.stack, name),
            labels=template.metadata.labels,
            annotations={**(template.metadata.annotations or {}), **marks.annotations()},
        )
        spec = manifest.spec
        spec.schedule, spec.time_zone, spec.suspend = timing.cron, timing.time_zone, timing.paused
        spec.concurrency_policy, spec.starting_deadline_seconds = timing.overlap, timing.start_within
        spec.successful_jobs_history_limit, spec.failed_jobs_history_limit = timing.succeeded_kept, timing.failed_kept
        return manifest

    zenml_orchestrator.build_cron_job_manifest = build_marked  # type: ignore[assignment]
    try:
        yield
    finally:
        zenml_orchestrator.build_cron_job_manifest = build


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)

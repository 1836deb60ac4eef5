"""What stands: CronJobs with their jobs and events, and schedules at the ZenML server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes.constants import RUN_ID_ANNOTATION_KEY
from zenml.models import PipelineRunResponse

from medflow.platform.kubernetes import reasons, scheduled, watching
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.scheduling import credentials, marks
from medflow.platform.scheduling.records import GONE, Fire, Frozen, Key, Ran, Registered, Standing

#: So many of a schedule's newest runs are asked for.
RUNS_ASKED = 100
#: Nothing was read of a CronJob whose marks were removed.
UNKNOWN = Frozen(image="unknown", code="", settings="")


def standing(here: Cluster, stack: str) -> tuple[Standing, ...]:
    """Every CronJob that medflow made for a stack."""
    found = []
    events = here.events()
    for cron_job in here.cron_jobs(marks.SCHEDULE):
        name = cron_job["metadata"]["labels"][marks.SCHEDULE]
        if cron_job["metadata"]["name"] == marks.cron_job_name(stack, name):
            found.append(_standing(here, name, cron_job, events))
    return tuple(sorted(found, key=lambda item: item.name))


def registered(stack: str) -> tuple[Registered, ...]:
    """Every schedule that medflow made for a stack at the ZenML server."""
    page = Client().list_schedules(name=f"startswith:{registered_name(stack, '')}", size=1000)
    start = len(registered_name(stack, ""))
    return tuple(
        Registered(name=item.name[start:], id=str(item.id), cron=item.cron_expression or "", active=item.active)
        for item in page.items
    )


def registered_name(stack: str, name: str) -> str:
    """What ZenML calls a schedule."""
    return f"medflow {stack}: {name}"


def _standing(here: Cluster, name: str, cron_job: dict[str, Any], events: list[dict[str, Any]]) -> Standing:
    given = marks.Marks.of(cron_job)
    job = cron_job["metadata"]["name"]
    last = cron_job.get("status", {}).get("lastScheduleTime")
    # Marks are written a while before the CronJob stands, and it is not due before it does.
    made = moment(cron_job["metadata"]["creationTimestamp"])
    return Standing(
        name=name,
        job=job,
        timing=marks.timing_of(cron_job),
        frozen=given.frozen if given else UNKNOWN,
        edited=given is None or given.template != marks.template_digest(cron_job),
        key=credentials.state_of(given.key) if given else Key.VALID,
        schedule_id=given.schedule_id if given else "",
        snapshot_id=snapshot_of(cron_job),
        since=max([made, *([given.since] if given else [])]),
        last_fire=moment(last) if last else None,
        fires=fires(here, cron_job, events),
        runs=runs(given.schedule_id) if given and given.schedule_id else (),
        warnings=tuple(_warning(event) for event in events if _is_warning(event, cron_job)),
    )


def snapshot_of(cron_job: dict[str, Any]) -> str:
    """What its pods run, after which their token's Secret is named."""
    container = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    return str(words[words.index("--snapshot_id") + 1]) if "--snapshot_id" in words else ""


def fires(here: Cluster, cron_job: dict[str, Any], events: list[dict[str, Any]]) -> tuple[Fire, ...]:
    """The jobs of a CronJob that the cluster still knows, oldest first."""
    return tuple(_fire(here, seen) for seen in here.jobs_of(cron_job, events))


def _fire(here: Cluster, seen: Observed) -> Fire:
    """One job of a CronJob: when it was due, how far it came, and why no further."""
    facts = seen.job["metadata"]
    annotations = facts.get("annotations", {})
    run_id = annotations.get(RUN_ID_ANNOTATION_KEY)
    status, reason = _run(run_id) if run_id else ("", _why(here, seen))
    fire = Fire(
        job=seen.name,
        at=moment(annotations.get(scheduled.DUE) or facts["creationTimestamp"]),
        ended=ended(seen.job),
        run_id=run_id,
        run_status=status,
        reason=reason,
        failed=failed(seen.job),
    )
    return fire.model_copy(update={"reason": reasons.ended(seen)}) if fire.broken_off else fire


def runs(schedule_id: str) -> tuple[Ran, ...]:
    """The newest runs of a schedule."""
    page = Client().list_pipeline_runs(schedule_id=schedule_id, sort_by="desc:created", size=RUNS_ASKED, hydrate=True)
    return tuple(ran(run) for run in page.items)


def ran(run: PipelineRunResponse) -> Ran:
    """When a run was due and ended; ZenML's times are in UTC and do not say so."""
    due = run.run_metadata.get(scheduled.DUE_OF_RUN)
    return Ran(
        at=moment(str(due)) if due else run.created.replace(tzinfo=UTC),
        ended=run.end_time.replace(tzinfo=UTC) if run.end_time else None,
    )


def _run(run_id: str) -> tuple[str, str | None]:
    """Status of a run, and its reason where there is one."""
    client = Client()
    try:
        run = client.get_pipeline_run(run_id)
    except KeyError:
        return GONE, None
    if run.status != ExecutionStatus.FAILED:
        return run.status.value, run.get_body().status_reason
    steps = client.list_run_steps(pipeline_run_id=run_id, size=1000, hydrate=True, exclude_retried=True).items
    return run.status.value, watching.why(run, {step.name: step for step in steps})


def _why(here: Cluster, seen: Observed) -> str | None:
    """Why a job has no run: what the cluster says, and the last word of its pod."""
    reason = reasons.fatal(seen) or reasons.ended(seen) or reasons.pending(seen)
    log = here.log(seen.pods[-1]["metadata"]["name"]) if reason and seen.pods else None
    said = last_words(log or "")
    return f"{reason}; its pod said: {said}" if said else reason


def last_words(log: str) -> str:
    """The last line of a pod's log that says anything, without its time."""
    said = [line.partition(" ")[2].strip() for line in log.splitlines()]
    return next((line[:300] for line in reversed(said) if line), "")


def ended(job: dict[str, Any]) -> datetime | None:
    """When a job was over; None while it, or a pod of it, goes on."""
    over = _conditions(job, "Complete", "Failed")
    text = job.get("status", {}).get("completionTime") or next((item["lastTransitionTime"] for item in over), None)
    return moment(text) if text else None


def failed(job: dict[str, Any]) -> bool:
    """Whether a job is over and failed."""
    return bool(_conditions(job, "Failed"))


def _conditions(job: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    return [item for item in job.get("status", {}).get("conditions") or [] if item["type"] in kinds]


def _is_warning(event: dict[str, Any], cron_job: dict[str, Any]) -> bool:
    return event.get("type") == "Warning" and event["involvedObject"].get("uid") == cron_job["metadata"]["uid"]


def _warning(event: dict[str, Any]) -> str:
    return f"{event.get('reason')}: {' '.join(str(event.get('message', '')).split())}"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)

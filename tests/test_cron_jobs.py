"""What medflow writes on a CronJob that ZenML's own code builds, and reads again from what the API server says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiClient, V1Job
from zenml.integrations.kubernetes.manifest_utils import (
    build_job_manifest,
    build_pod_manifest,
    job_template_manifest_from_job,
    pod_template_manifest_from_pod,
)
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator as zenml_orchestrator
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings

from medflow.config.sections.schedules import ScheduleConfig
from medflow.platform.kubernetes.scheduling import marks, observing
from medflow.platform.scheduling.records import Timing

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
SCHEDULE = ScheduleConfig(name="nightly", dataset="phantom", cron="0 2 * * *", time_zone="Europe/Berlin")
TIMING = Timing.of(SCHEDULE)
MARKS = marks.Marks(stack="mine", image="a", code="b", settings="c", key="x/y/never", since=NOW)


def job() -> V1Job:
    pod = build_pod_manifest(
        pod_name=None, image_name="registry.example/medflow-step:1", command=["python"],
        args=["--snapshot_id", "1234"], privileged=False, env={}, pod_settings=KubernetesPodSettings(),
        service_account_name="medflow-orchestrator",
    )  # fmt: skip
    return build_job_manifest(
        job_name="x-phantom", pod_template=pod_template_manifest_from_pod(pod), backoff_limit=3, labels={"a": "b"},
        annotations={"zenml.io/orchestrator": "o"},
    )  # fmt: skip


def cron_job(name: str = "nightly", timing: Timing = TIMING) -> dict[str, Any]:
    """As ZenML makes it of its settings, within medflow's block."""
    with marks.marked(name, MARKS, timing):
        built = zenml_orchestrator.build_cron_job_manifest(
            cron_expression="* * * * *", job_template=job_template_manifest_from_job(job())
        )
    plain: dict[str, Any] = ApiClient().sanitize_for_serialization(built)
    return plain


TIMINGS = st.builds(
    Timing,
    cron=st.sampled_from(["0 2 * * *", "*/5 * * * mon-fri"]),
    time_zone=st.sampled_from(["UTC", "Asia/Kolkata"]),
    paused=st.booleans(),
    overlap=st.sampled_from(["Forbid", "Allow"]),
    start_within=st.integers(60, 10_000),
    succeeded_kept=st.integers(0, 9),
    failed_kept=st.integers(0, 9),
)


@given(TIMINGS)
def test_a_timing_is_read_as_it_was_written(timing):
    assert marks.timing_of(cron_job(timing=timing)) == timing
    assert marks.timing_of({"spec": marks.patch_of(timing)}) == timing


def test_marks_stand_on_the_cron_job_and_its_jobs_are_found_by_label():
    made = cron_job()
    assert marks.Marks.of(made) == MARKS
    assert made["metadata"]["labels"] == {"a": "b", marks.SCHEDULE: "nightly"}
    assert made["spec"]["jobTemplate"]["metadata"]["labels"][marks.SCHEDULE] == "nightly"
    assert marks.TEMPLATE not in made["spec"]["jobTemplate"]["metadata"]["annotations"]
    assert observing.snapshot_of(made) == "1234"


def test_a_mark_that_somebody_removed_is_missed():
    made = cron_job()
    del made["metadata"]["annotations"]["medflow/code"]
    assert marks.Marks.of(made) is None


@pytest.mark.parametrize(("mark", "value"), {"key": "mine", "schedule_id": "the first", "since": "today"}.items())
def test_a_mark_that_somebody_wrote_over_is_as_one_removed(mark, value):
    """Nobody could look up such a key, and the plan would end there."""
    made = cron_job()
    made["metadata"]["annotations"][f"medflow/{mark}"] = value
    assert marks.Marks.of(made) is None


def test_what_zenml_builds_outside_the_block_is_its_own():
    cron_job()
    built = zenml_orchestrator.build_cron_job_manifest(
        cron_expression="* * * * *", job_template=job_template_manifest_from_job(job())
    )
    assert built.metadata.name == "x-phantom" and built.spec.time_zone is None


@given(st.from_regex(ScheduleConfig.model_fields["name"].metadata[0].pattern, fullmatch=True), st.text(max_size=90))
def test_names_fit_and_differ_by_stack(name, stack):
    found = marks.cron_job_name(stack, name)
    assert len(found) <= 52
    assert found != marks.cron_job_name(f"{stack}-2", name)


@pytest.mark.parametrize(
    ("status", "ended"),
    {
        "goes on": ({}, None),
        "complete": ({"completionTime": "2026-05-04T12:00:00Z", "conditions": [{"type": "Complete"}]}, NOW),
        "failed": ({"conditions": [{"type": "Failed", "lastTransitionTime": "2026-05-04T12:00:00Z"}]}, NOW),
        "is ending": ({"conditions": [{"type": "FailureTarget", "lastTransitionTime": "2026-05-04T12:00:00Z"}]}, None),
    }.values(),
)
def test_a_job_is_over_when_its_last_pod_is(status, ended):
    assert observing.ended({"status": status}) == ended
    assert observing.failed({"status": status}) == (bool(ended) and "completionTime" not in status)


@pytest.mark.parametrize(
    ("log", "words"),
    {
        "an error": ("2026-05-04T11:59:59Z Traceback\n2026-05-04T12:00:00Z CredentialsNotValid: gone\n",
                     "CredentialsNotValid: gone"),
        "an empty line last": ("2026-05-04T12:00:00Z one\n2026-05-04T12:00:00Z \n", "one"),
        "nothing": ("", ""),
    }.values(),
)  # fmt: skip
def test_the_last_words_of_a_pod(log, words):
    assert observing.last_words(log) == words

"""What the ZenML server tells of schedules and their runs, and how a run of one begins: a server's database here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from api_server import JOBS, NAMESPACE, PODS, ApiServer, served
from zenml import pipeline, step
from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.enums import ExecutionStatus, MetadataResourceTypes
from zenml.integrations.kubernetes.constants import RUN_ID_ANNOTATION_KEY
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, RunMetadataResource
from zenml.orchestrators.local.local_orchestrator import LocalOrchestratorConfig
from zenml.pipelines.run_utils import create_placeholder_run

from medflow.platform import stack as stacks
from medflow.platform.kubernetes import cluster, orchestrating, others, patience, scheduled, stale
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.scheduled import DUE_OF_RUN
from medflow.platform.kubernetes.scheduling import observing
from medflow.platform.scheduling.records import Ran


@step
def nothing() -> int:
    return 1


@pipeline(name="of_a_schedule")
def of_a_schedule() -> None:
    nothing()


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelineSnapshotResponse]:
    """What a schedule of the stack ``mine`` runs; a local orchestrator is taken for one that schedules."""
    stacks.use_local()
    monkeypatch.setattr(LocalOrchestratorConfig, "is_schedulable", True)
    name = observing.registered_name("mine", "nightly")
    scheduled: Any = of_a_schedule.with_options(schedule=Schedule(name=name, cron_expression="0 2 * * *"))
    scheduled.prepare()
    made = scheduled._create_snapshot(**scheduled._run_args)
    yield made
    Client().zen_store.delete_schedule(made.schedule.id, soft=False)
    Client().delete_pipeline("of_a_schedule")


def test_runs_are_known_by_when_they_were_due_or_began(snapshot):
    schedule = str(snapshot.schedule.id)
    assert observing.runs(schedule) == ()
    due = create_placeholder_run(snapshot=snapshot, orchestrator_run_id="a")
    resource = RunMetadataResource(id=due.id, type=MetadataResourceTypes.PIPELINE_RUN)
    Client().create_run_metadata(metadata={DUE_OF_RUN: "2026-05-04T02:00:00+02:00"}, resources=[resource])
    create_placeholder_run(snapshot=snapshot, orchestrator_run_id="b")
    newest, oldest = observing.runs(schedule)
    now = datetime.now(UTC)
    assert newest.ended is None and now - timedelta(minutes=1) < newest.at <= now
    assert oldest == Ran(at=datetime(2026, 5, 4, tzinfo=UTC))
    assert observing.runs(str(uuid4())) == ()


def test_of_a_run_that_is_over_the_end_is_known():
    stacks.use_local()
    began = datetime.now(UTC)
    found = observing.ran(of_a_schedule())
    assert found.ended is not None and began <= found.at <= found.ended <= datetime.now(UTC)


def test_a_schedule_is_known_by_its_stack_until_it_is_archived(snapshot):
    (found,) = observing.registered("mine")
    assert (found.name, found.cron, found.active) == ("nightly", "0 2 * * *", True)
    assert observing.registered("min") == ()
    Client().zen_store.delete_schedule(snapshot.schedule.id, soft=True)
    assert observing.registered("mine") == ()


def fire_of(run_id: str, here: Cluster, *conditions: dict[str, str]) -> Any:
    facts = {
        "name": "nightly-1",
        "creationTimestamp": "2026-05-04T12:00:00Z",
        "annotations": {RUN_ID_ANNOTATION_KEY: run_id},
    }
    return observing._fire(here, Observed({"metadata": facts, "spec": {}, "status": {"conditions": list(conditions)}}))


def test_of_a_run_that_its_orchestrator_left_unfinished_the_job_tells_why(snapshot, server):
    run_id = str(create_placeholder_run(snapshot=snapshot, orchestrator_run_id="a").id)
    assert fire_of(run_id, server.cluster()).reason is None
    failed = {
        "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often",
        "lastTransitionTime": "2026-05-04T13:00:00Z",
    }  # fmt: skip
    found = fire_of(run_id, server.cluster(), failed)
    assert found.broken_off and found.reason == "BackoffLimitExceeded: too often"
    deleted = fire_of(str(uuid4()), server.cluster(), failed)
    assert not deleted.broken_off and deleted.reason is None


# -- how a run begins -------------------------------------------------------------------------------

POD = "orchestrator-2"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """With this process as the pod of a job that was due."""
    stacks.use_local()
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(cluster, "pod_name", lambda: POD)
    monkeypatch.setattr(scheduled.socket, "gethostname", lambda: POD)
    with served() as found:
        found.add(PODS, {"metadata": {"name": POD, "labels": {"job-name": "o"}}, "status": {}})
        due = {scheduled.DUE: "2026-05-04T02:00:00+02:00"}
        found.add(JOBS, {"metadata": {"name": "o", "annotations": due}, "status": {}})
        yield found


def going_on(snapshot: PipelineSnapshotResponse, server: ApiServer, pod: str, job: str) -> PipelineRunResponse:
    """A run whose orchestrator's job is in the cluster."""
    run = create_placeholder_run(snapshot=snapshot, orchestrator_run_id=pod)
    marks = {"labels": {"run_id": str(run.id)}, "annotations": {RUN_ID_ANNOTATION_KEY: str(run.id)}}
    server.add(JOBS, {"metadata": {"name": job, **marks}, "status": {}})
    return run


def now(run: PipelineRunResponse) -> tuple[str, str | None]:
    found = Client().get_pipeline_run(run.id)
    return found.status.value, found.get_body().status_reason


@pytest.fixture
def started(snapshot: PipelineSnapshotResponse, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the orchestrator's program starts the steps of, which here it does not."""
    steps: list[str] = []
    given = Namespace(snapshot_id=snapshot.id, run_id=None)
    monkeypatch.setattr(orchestrating.zenml_entrypoint, "parse_args", lambda: given)
    monkeypatch.setattr(orchestrating.zenml_entrypoint, "main", lambda: steps.append("started"))
    monkeypatch.setattr(orchestrating, "prepare", lambda: None)
    monkeypatch.setattr(orchestrating, "_namespace", lambda: NAMESPACE)
    monkeypatch.setattr(orchestrating, "_watch", lambda monitor: None)
    # Whatever is put in its place goes with the test.
    name = "StepEntrypointConfiguration"
    monkeypatch.setattr(orchestrating.zenml_entrypoint, name, getattr(orchestrating.zenml_entrypoint, name))
    monkeypatch.setattr(cluster, "inside", lambda namespace: server.cluster())
    monkeypatch.setattr(stale, "problem", lambda snapshot: None)
    return steps


def test_a_pod_that_replaces_a_lost_one_gives_way_too(snapshot, server, started):
    """The lost one had written its run on the job, and had not asked yet whether another goes on."""
    first = going_on(snapshot, server, "another", "another")
    own = going_on(snapshot, server, "orchestrator-1", "o")
    orchestrating.main()
    assert started == []
    left_out = ("stopped", f"a run of of_a_schedule is going on already: {first.name}")
    assert now(own) == left_out
    server.objects[JOBS].pop("another")
    orchestrating.main()
    assert started == [] and now(own) == left_out, "the lost one had ended it"


def test_a_pod_that_replaces_one_that_had_begun_goes_on(snapshot, server, started):
    going_on(snapshot, server, "another", "another")
    own = going_on(snapshot, server, "orchestrator-1", "o")
    marks = {"labels": {"run_id": str(own.id)}, "annotations": {"zenml.io/step-name": "nothing"}}
    server.add(JOBS, {"metadata": {"name": "step", **marks}, "status": {}})
    orchestrating.main()
    assert started == ["started"] and now(own)[0] == ExecutionStatus.INITIALIZING.value


def test_a_run_is_written_on_its_job_however_long_that_takes(snapshot, server, monkeypatch):
    """Two for the pod and its job, three for what is about them."""
    server.troubles = ["well"] * 5 + ["503", "drop"]
    create, outages = Client.create_run_metadata, [RuntimeError("502"), ConnectionError("away")]

    def away(*given: Any, **named: Any) -> None:
        if outages:
            raise outages.pop()
        create(*given, **named)

    monkeypatch.setattr(Client, "create_run_metadata", away)
    run_id = scheduled.begin(snapshot, server.cluster())
    assert server.asked.count("PATCH o") == 3
    (found,) = observing.runs(str(snapshot.schedule.id))
    assert found.at == datetime(2026, 5, 4, tzinfo=UTC)
    assert Client().get_pipeline_run(run_id).orchestrator_run_id == POD


def test_a_server_that_is_away_is_asked_again_whether_a_run_is_needed(snapshot, server, monkeypatch):
    first = going_on(snapshot, server, "another", "another")
    own = going_on(snapshot, server, "orchestrator-1", "o")
    find, outages = others.going_on, [RuntimeError("502"), ConnectionError("away")]

    def away(*given: Any) -> Iterator[PipelineRunResponse]:
        if outages:
            raise outages.pop()
        return find(*given)

    monkeypatch.setattr(others, "going_on", away)
    server.troubles = ["503", "drop"]
    found = scheduled.needless(snapshot, str(own.id), server.cluster())
    assert found == f"a run of of_a_schedule is going on already: {first.name}"

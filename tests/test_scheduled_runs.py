"""What the ZenML server tells of schedules and their runs: here a server's database on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from zenml import pipeline, step
from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.enums import MetadataResourceTypes
from zenml.models import PipelineSnapshotResponse, RunMetadataResource
from zenml.orchestrators.local.local_orchestrator import LocalOrchestratorConfig
from zenml.pipelines.run_utils import create_placeholder_run

from medflow.platform import stack as stacks
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

"""What is sent to a cluster while schedules are applied, in which order; a server here plays the API's part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from kubernetes import client

from medflow.config.sections.schedules import ScheduleConfig
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.scheduling.applying import Applied, Scheduler
from medflow.platform.scheduling.records import Action, Change, Frozen, Key, Standing, Timing

JOB = "medflow-nightly-abcdef"
CRON_JOB = {
    "metadata": {"name": JOB, "uid": "u1"},
    "spec": {"schedule": "* * * * *", "suspend": True, "jobTemplate": {"spec": {"template": {}}}},
}
OWNER = {"apiVersion": "batch/v1", "kind": "CronJob", "name": JOB, "uid": "u1"}
FIRE = {
    "metadata": {"name": f"{JOB}-1", "creationTimestamp": "2026-05-04T12:00:00Z", "ownerReferences": [OWNER]},
    "status": {"active": 1},
}
STANDING = Standing(
    name="nightly", job=JOB, timing=Timing.of(ScheduleConfig(name="nightly", dataset="phantom", cron="* * * * *")),
    frozen=Frozen(image="a", code="b", settings="c"), edited=False, key=Key.VALID, schedule_id="s", snapshot_id="t",
    since=datetime(2026, 5, 4, tzinfo=UTC),
)  # fmt: skip


@dataclass
class Api:
    """What was asked that changes something, and what goes on."""

    asked: list[str] = field(default_factory=list)
    fires: list[dict[str, Any]] = field(default_factory=list)
    refused: str = ""
    """What may not be done."""

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        kind = path.split("?")[0].split("/medflow/")[1]
        if method != "GET":
            self.asked.append(f"{method} {kind}")
            if self.asked[-1] == self.refused:
                return 403, {"message": "forbidden"}
        if kind == "jobs":
            return 200, {"items": self.fires}
        return 200, CRON_JOB if kind.startswith("cronjobs/") else {"items": []}


@pytest.fixture
def api() -> Iterator[Api]:
    yield Api()


@pytest.fixture
def scheduler(api: Api) -> Iterator[Scheduler]:
    """One that has seen a CronJob of which no run goes on, and that ZenML does not know."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = api.answer(self.command, self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    connection = client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{server.server_port}"))
    found = Scheduler.__new__(Scheduler)
    found.here = Cluster(client.CoreV1Api(connection), client.BatchV1Api(connection), "medflow")
    found.standing, found.wanted, found.registered = {"nightly": STANDING}, {}, {}
    yield found
    server.shutdown()


def removed(scheduler: Scheduler) -> Applied:
    return scheduler._apply(Change(name="nightly", action=Action.DELETE, why=("a",)), "", lambda line: None)


def test_a_run_that_began_after_the_plan_is_not_cut_off(api, scheduler):
    api.fires = [FIRE]
    found = removed(scheduler)
    assert found.outcome == "waits" and "medflow-nightly-abcdef-1 goes on" in found.why[-1]
    assert api.asked == [f"PATCH cronjobs/{JOB}"]


def test_nothing_fires_any_more_when_it_is_looked_whether_a_run_goes_on(api, scheduler):
    assert removed(scheduler).outcome == "deleted"
    assert api.asked == [f"PATCH cronjobs/{JOB}", "DELETE secrets/zenml-token-t", f"DELETE cronjobs/{JOB}"]


def test_a_token_that_cannot_be_removed_stays_known(api, scheduler):
    """By its CronJob: ZenML does not know the schedule, and nothing else names the Secret."""
    api.refused = "DELETE secrets/zenml-token-t"
    with pytest.raises(client.ApiException):
        removed(scheduler)
    assert f"DELETE cronjobs/{JOB}" not in api.asked

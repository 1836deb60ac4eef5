"""An API server that is away for a while costs no run; what it refuses is told at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from api_server import EVENTS, JOBS, NAMESPACE, PODS, ApiServer, served
from kubernetes.client import ApiException
from test_ending import run_of
from test_kubernetes import ASKED, STACK, event, job_of
from test_nodes import TRAINING
from urllib3.exceptions import HTTPError
from zenml.integrations.kubernetes import kube_utils
from zenml.integrations.kubernetes.manifest_utils import (
    build_job_manifest,
    build_pod_manifest,
    pod_template_manifest_from_pod,
)
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings
from zenml.orchestrators.dag_runner import Node, NodeStatus

from medflow.errors import PlatformError
from medflow.platform import stack as stacks
from medflow.platform.kubernetes import monitoring, patience, settings, training_api, transport
from medflow.platform.kubernetes.cluster import STEP_ANNOTATION
from medflow.platform.kubernetes.keeping import FAILURE, Keeper
from medflow.platform.kubernetes.monitoring import Monitor, PatientRunner

RUN = "0c5f7cf2-5b0b-4ad5-a13e-0f6b1c9d2f11"
LABELS = {"run_id": RUN, "step_name": "train"}
NAME = "x-train"
TRAIN = {STEP_ANNOTATION: "train"}
HICCUPS = ("drop", "500", "503", "429")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(transport, "RETRIES", transport.RETRIES.new(read=0, total=0))
    with served() as found:
        yield found


def job(**status: Any) -> dict[str, Any]:
    made = job_of(settings.pod_settings(ASKED, STACK.cluster))
    made["metadata"] |= {"name": NAME, "labels": LABELS}
    return {**made, "status": status}


def pod(**status: Any) -> dict[str, Any]:
    facts = {"name": f"{NAME}-1", "labels": {**LABELS, "job-name": NAME}}
    return {"metadata": facts, "spec": job()["spec"]["template"]["spec"], "status": status}


def monitor(server: ApiServer) -> Monitor:
    stacks.use_local()
    here = server.cluster()
    return Monitor(here, Keeper(here, stacks.client().active_stack.artifact_store), {"train": ASKED})


def check(server: ApiServer, watch: Monitor) -> tuple[kube_utils.JobStatus, str | None]:
    """What ZenML's runner is told, ZenML's own check included."""
    here = server.cluster()
    checked = watch.checking(kube_utils.check_job_status)
    return checked(batch_api=here.batch, core_api=here.core, namespace=NAMESPACE, job_name=NAME, max_retries=0)


RUNNING, FAILED = kube_utils.JobStatus.RUNNING, kube_utils.JobStatus.FAILED


@pytest.mark.parametrize("trouble", HICCUPS)
@pytest.mark.parametrize("after", range(4))
def test_a_hiccup_anywhere_in_the_look_at_a_step_leaves_it_running(server: ApiServer, trouble: str, after: int) -> None:
    """Requests: the job, its pods, the events, and ZenML's own."""
    server.add(JOBS, job())
    watch = monitor(server)
    server.troubles = [*["well"] * after, trouble]
    assert check(server, watch) == (RUNNING, None)
    assert check(server, watch) == (RUNNING, None)
    server.objects[JOBS][NAME]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert check(server, watch)[0] == kube_utils.JobStatus.SUCCEEDED


def test_a_look_at_a_job_reads_its_own_events_oldest_first(server: ApiServer) -> None:
    server.add(JOBS, job(active=1))
    server.add(PODS, pod(phase="Running"))
    times = {
        f"{NAME}-1": {"eventTime": "2026-11-21T12:00:05.250000Z", "lastTimestamp": None},
        NAME: {"lastTimestamp": "2026-11-21T12:00:05Z"},
        "another": {"lastTimestamp": "2026-11-21T12:00:01Z"},
    }
    for about, given in times.items():
        server.add(EVENTS, {"metadata": {"name": f"event-{about}"}, "involvedObject": {"name": about}, **given})
    seen = server.cluster().job(NAME)
    assert seen is not None
    assert [event["involvedObject"]["name"] for event in seen.events] == [NAME, f"{NAME}-1"]
    assert len(server.cluster().events()) == 3


def test_a_step_is_done_when_its_pod_is(server: ApiServer) -> None:
    server.add(JOBS, job(active=1))
    server.add(PODS, pod(phase="Running"))
    watch = monitor(server)
    assert check(server, watch)[0] == RUNNING
    server.objects[PODS][f"{NAME}-1"]["status"] = {"phase": "Succeeded"}
    assert check(server, watch) == (kube_utils.JobStatus.SUCCEEDED, None)


def test_a_job_that_somebody_removed_is_told_and_one_of_a_run_that_ends_is_not(server: ApiServer) -> None:
    stacks.use_local()
    run = run_of("removed")
    labels = {"run_id": str(run.id)}
    server.add(JOBS, {**job(), "metadata": {"name": NAME, "labels": labels, "annotations": TRAIN}})
    watch = monitor(server)
    assert check(server, watch)[0] == RUNNING
    server.objects[JOBS].clear()
    assert check(server, watch) == (FAILED, monitoring.GONE)
    told = stacks.client().get_pipeline_run(run.id).run_metadata[f"{FAILURE}train"]
    assert told == monitoring.GONE
    with pytest.raises(ApiException):
        check(server, watch)  # why the run ends has been said


def test_the_log_of_a_pod_that_has_ended_is_read_once(server: ApiServer) -> None:
    server.add(JOBS, job(active=1))
    server.add(PODS, pod(phase="Failed"))
    server.add(PODS, {"metadata": {"name": f"{NAME}-1/log"}, "said": "epoch 1"})
    watch = monitor(server)
    for _ in range(3):
        check(server, watch)
    asked = [line for line in server.asked if "log" in line]
    assert len(asked) == 1, server.asked
    watch.keeper.forget_reading()
    check(server, watch)
    assert len([line for line in server.asked if "log" in line]) == 2


def test_a_node_that_has_no_log_any_more_takes_none_away(server: ApiServer) -> None:
    server.add(JOBS, job(active=1))
    server.add(PODS, pod(phase="Running"))
    server.add(PODS, {"metadata": {"name": f"{NAME}-1/log"}, "said": "epoch 1"})
    watch = monitor(server)
    check(server, watch)
    server.objects[PODS][f"{NAME}-1"]["metadata"]["deletionTimestamp"] = "2026-11-21T12:01:00Z"
    server.objects[PODS][f"{NAME}-1/log"]["said"] = "unable to retrieve container logs for containerd://474a8f1c"
    check(server, watch)
    assert watch.keeper.logs == {f"{NAME}-1": "epoch 1"}


def test_a_failed_step_takes_its_nodes_with_it(server: ApiServer) -> None:
    over = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
    for labels in ({}, settings.STARTS_NODES):
        made = job(**over)
        made["spec"]["template"]["metadata"] = {"labels": labels}
        server.add(JOBS, made)
        assert check(server, monitor(server))[0] == FAILED
        assert server.names(JOBS) == ([] if labels else [NAME])


def test_an_api_server_that_stays_away_ends_the_step_with_the_reason(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.3)
    server.add(JOBS, job())
    watch, told = monitor(server), []
    watch._outages.say = told.append
    server.always, until = "500", time.monotonic() + 5
    while (found := check(server, watch))[0] == RUNNING and time.monotonic() < until:
        time.sleep(0.02)
    assert found[0] == FAILED and "has not answered for" in str(found[1]) and "\n" not in str(found[1])
    assert len(told) == 1 and "does not answer" in told[0]


def test_why_a_step_was_given_up_stands_in_the_run_s_metadata(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks.use_local()
    run = run_of("given-up")
    server.add(JOBS, {**job(), "metadata": {"name": NAME, "labels": {"run_id": str(run.id)}, "annotations": TRAIN}})
    watch = monitor(server)
    assert check(server, watch)[0] == RUNNING
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)
    server.always = "500"
    assert check(server, watch)[0] == FAILED
    told = stacks.client().get_pipeline_run(run.id).run_metadata[f"{FAILURE}train"]
    assert "a server has not answered" in str(told)


def test_what_the_api_server_refuses_is_not_waited_for(server: ApiServer) -> None:
    server.add(JOBS, job())
    server.always = "403"
    found = check(server, monitor(server))
    assert found[0] == FAILED and "the cluster refuses (403" in str(found[1])


def test_a_reason_is_not_lost_where_the_answer_about_the_removal_is(server: ApiServer) -> None:
    server.add(JOBS, job())
    refusal = event("FailedCreate", 'violates PodSecurity "restricted"')
    server.add(EVENTS, {**refusal, "metadata": {"name": "x-train.1", "uid": "1"}})
    watch = monitor(server)
    server.troubles = ["well", "well", "well", "lost"]
    found = check(server, watch)
    assert found[0] == FAILED and "refused by Pod Security" in str(found[1])
    assert server.names(JOBS) == []


# -- starting --------------------------------------------------------------------------------------


def manifest(run: str = RUN) -> Any:
    made = build_pod_manifest(
        pod_name=None, image_name=STACK.image, command=["python"], args=[], privileged=False, env={},
        pod_settings=KubernetesPodSettings(), service_account_name="medflow-step",
    )  # fmt: skip
    return build_job_manifest(
        job_name=NAME, pod_template=pod_template_manifest_from_pod(made), backoff_limit=0,
        labels={**LABELS, "run_id": run}, annotations={STEP_ANNOTATION: "train"},
    )  # fmt: skip


def start(server: ApiServer, watch: Monitor, made: Any) -> None:
    started = watch.starting(kube_utils.create_job)
    started(batch_api=server.cluster().batch, namespace=NAMESPACE, job_manifest=made, max_retries=0)


@pytest.mark.parametrize("trouble", [*HICCUPS, "lost"])
def test_a_job_is_made_once_whatever_becomes_of_the_answer(server: ApiServer, trouble: str) -> None:
    server.troubles = [trouble]
    start(server, monitor(server), manifest())
    assert server.names(JOBS) == [NAME]


def test_a_job_of_that_name_of_another_run_is_no_success(server: ApiServer) -> None:
    server.add(JOBS, {**job(), "metadata": {"name": NAME, "labels": {"run_id": "another"}}})
    with pytest.raises(PlatformError, match="refuses \\(409"):
        start(server, monitor(server), manifest())


def test_nothing_is_started_any_more_when_the_run_has_ended(server: ApiServer) -> None:
    watch = monitor(server)
    server.always = "500"
    threading.Timer(0.2, watch.ended.set).start()
    with pytest.raises(ApiException):
        start(server, watch, manifest())
    server.always = None
    assert server.names(JOBS) == []


def test_the_runner_of_the_steps_outlives_a_zenml_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.02)
    troubles = [OSError("no route"), RuntimeError("502"), None]

    def hiccup(node: Node) -> None:
        if troubles and (trouble := troubles.pop(0)):
            raise trouble

    def begin(node: Node) -> NodeStatus:
        hiccup(node)
        return NodeStatus.RUNNING

    def look(node: Node) -> NodeStatus:
        hiccup(node)
        return NodeStatus.COMPLETED

    runner = PatientRunner(
        ended=threading.Event(), nodes=[Node(id="a")], node_startup_function=begin, node_monitoring_function=look,
        monitoring_interval=0.02,
    )  # fmt: skip
    troubles = [OSError("no route"), None, RuntimeError("502"), None]
    assert runner.run() == {"a": NodeStatus.COMPLETED}


# -- limits in time --------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["job", "log"])
def test_a_connection_without_a_word_raises_in_time(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.3)
    server.always, here, began = "silent", server.cluster(), time.monotonic()
    if ask == "log":
        assert here.log("a") is None, "a log that cannot be had holds nothing up"
    else:
        with pytest.raises(HTTPError):
            here.job("a")
    assert time.monotonic() - began < 5


def test_clients_that_zenml_makes_have_the_limits_within_the_block_alone() -> None:
    from kubernetes.client import ApiClient

    with transport.limited():
        assert isinstance(ApiClient().rest_client, transport.Limited)
        assert ApiClient().rest_client.pool_manager.connection_pool_kw["retries"] is transport.RETRIES
    assert not isinstance(ApiClient().rest_client, transport.Limited)


# -- following -------------------------------------------------------------------------------------


UNKNOWN = (
    '403 admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.runtimeRef: Invalid '
    'value: {}: TrainingRuntime.trainer.kubeflow.org "{name}" not found: specified trainingRuntime must be created '
    "before the TrainJob is created"
).replace("{name}", TRAINING.name)


def test_a_job_of_nodes_waits_until_trainer_knows_its_runtime(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_api, "POLL_SECONDS", 0.02)
    api = training_api.TrainingApi(server.cluster(), TRAINING)
    server.troubles = ["well", UNKNOWN, UNKNOWN]
    api.start()
    assert server.names("trainingruntimes") == server.names("trainjobs") == [TRAINING.name]
    assert server.asked == ["POST trainingruntimes"] + ["POST trainjobs"] * 3


@pytest.mark.parametrize("words", [UNKNOWN, "403 trainjobs is forbidden: User x cannot create it"])
def test_a_job_of_nodes_that_trainer_refuses_is_told(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(training_api, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(training_api, "KNOWN_SECONDS", 0.1)
    server.troubles, server.always = ["well"], words
    api = training_api.TrainingApi(server.cluster(), TRAINING)
    with pytest.raises(PlatformError) as error:
        patience.patiently(api.start, print)
    assert words[4:] in error.value.message
    assert ("medflow-client" in error.value.hint) == ("cannot" in words)


@pytest.mark.parametrize("code", ["401", "403", "404"])
def test_who_follows_a_run_is_told_of_a_refusal_at_once(server: ApiServer, code: str) -> None:
    server.always, here = code, server.cluster()
    with pytest.raises(PlatformError, match=rf"the cluster refuses \({code}") as error:
        patience.patiently(lambda: here.jobs(RUN), print)
    assert error.value.hint


def test_who_follows_a_run_waits_for_a_server_that_is_away(server: ApiServer) -> None:
    server.add(JOBS, job())
    server.add(PODS, pod(phase="Running"))
    server.troubles, said = list(HICCUPS), []
    here = server.cluster()
    [found] = patience.patiently(lambda: here.jobs(RUN), said.append)
    assert found.name == NAME and len(found.pods) == 1 and len(said) == 1

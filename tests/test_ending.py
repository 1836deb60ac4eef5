"""Runs that stand in each other's way, and the end of those that come to none of their own: ZenML's are real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import JOBS, NAMESPACE, PODS, ApiServer, served
from test_kubernetes import STACK, job_of
from zenml import pipeline, step
from zenml.enums import ExecutionStatus, StackComponentType
from zenml.models import PipelineRunResponse, PipelineRunUpdate, StepRunRequest, StepRunUpdate
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils.time_utils import utc_now

from medflow.config.sections.place import PlaceConfig, StepPlace
from medflow.errors import PlatformError
from medflow.platform import stack as stacks
from medflow.platform.kubernetes import ending, others, patience, reasons, running, settings, watching
from medflow.platform.kubernetes.cluster import Cluster

PLACE = others.sent_to(STACK.cluster)
SECRETS = "secrets"
OVER = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "limit"}]}


@step(enable_cache=False)
def nothing() -> None:
    pass


def definition(dataset: str) -> Any:
    @pipeline(name=dataset)
    def one() -> None:
        nothing()

    found: Any = one
    found.prepare()
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    stacks.use_local()
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(ending, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(others, "STARTING", timedelta(0))
    with served() as found:
        yield found


def submitted(configured: Any) -> PipelineRunResponse:
    """A run as ZenML makes it before it is sent to a cluster."""
    snapshot = configured._create_snapshot(**configured._run_args)
    run = create_placeholder_run(snapshot)
    stacks.client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.RUNNING))
    return run


def run_of(dataset: str, place: dict[str, str] | None = PLACE) -> PipelineRunResponse:
    extra = {} if place is None else {others.SENT_TO: place}
    return submitted(definition(dataset).with_options(extra=extra))


@contextmanager
def stack_of_store(name: str, path: Path) -> Iterator[None]:
    """Another stack in use, with an artifact store at this path."""
    client, before = stacks.client(), os.environ["ZENML_ACTIVE_STACK_ID"]
    local = client.active_stack_model.components
    client.create_stack_component(
        name=name, flavor="local", component_type=StackComponentType.ARTIFACT_STORE, configuration={"path": str(path)}
    )
    parts = {kind: name if kind == StackComponentType.ARTIFACT_STORE else of[0].name for kind, of in local.items()}
    made = client.create_stack(name, components=parts)
    os.environ["ZENML_ACTIVE_STACK_ID"] = str(made.id)
    try:
        yield
    finally:
        os.environ["ZENML_ACTIVE_STACK_ID"] = before


def own_store() -> Path:
    [store] = stacks.client().active_stack_model.components[StackComponentType.ARTIFACT_STORE]
    return Path(store.configuration["path"])


def add_jobs(server: ApiServer, run_id: str, orchestrator: dict[str, Any] | None = None) -> None:
    labels = {"run_id": run_id}
    server.add(JOBS, {"metadata": {"name": "o", "labels": labels}, "status": orchestrator or {}})
    annotations = {"zenml.io/step-name": "train"}
    server.add(JOBS, {"metadata": {"name": "train", "labels": labels, "annotations": annotations}, "status": {}})


def now(run: PipelineRunResponse) -> str:
    return str(stacks.client().get_pipeline_run(run.id).status.value)


def going(dataset: str, here: Cluster, place: dict[str, str] | None = PLACE) -> list[str]:
    return [str(run.id) for run in others.going_on(dataset, here, place)]


# -- which runs stand in the way --------------------------------------------------------------------


def test_a_run_whose_orchestrator_lives_is_refused_and_left_alone(server: ApiServer) -> None:
    run = run_of("lives")
    add_jobs(server, str(run.id))
    with pytest.raises(PlatformError, match=f"going on already: {run.name}") as error:
        others.refuse_second("lives", server.cluster(), PLACE)
    assert error.value.hint.endswith(f"`medflow stack stop {stacks.STACK} {run.id}`")
    assert now(run) == "running" and server.names(JOBS) == ["o", "train"]


def test_of_two_runs_that_saw_none_the_younger_gives_way(server: ApiServer) -> None:
    older, younger = run_of("twice"), run_of("twice")
    for number, run in enumerate((older, younger)):
        server.add(JOBS, {"metadata": {"name": f"o-{number}", "labels": {"run_id": str(run.id)}}, "status": {}})
    others.refuse_second("twice", server.cluster(), PLACE, started=str(older.id))
    with pytest.raises(PlatformError, match=f"going on already: {older.name}"):
        others.refuse_second("twice", server.cluster(), PLACE, started=str(younger.id))


def test_a_run_is_stopped_only_where_its_jobs_lie() -> None:
    stacks.use_local()
    run = run_of("elsewhere")
    others.check_stack(run, stacks.STACK, PLACE["namespace"])
    for stack, namespace in (("another", PLACE["namespace"]), (stacks.STACK, "another")):
        with pytest.raises(PlatformError, match=f"was sent to stack {stacks.STACK}, namespace ") as error:
            others.check_stack(run, stack, namespace)
        assert error.value.hint == f"`medflow stack stop {stacks.STACK} {run.id}`"


@pytest.mark.parametrize("place", [PLACE, None], ids=["noted", "not noted"])
def test_a_dead_run_of_this_stack_is_closed_and_its_steps_and_token_go(server: ApiServer, place: Any) -> None:
    dataset = f"dead-{place is None}"
    run = run_of(dataset, place)
    add_jobs(server, str(run.id), OVER)
    server.add(SECRETS, {"metadata": {"name": f"zenml-token-{run.snapshot.id}"}})
    assert going(dataset, server.cluster()) == []
    assert now(run) == "failed" and server.names(JOBS) == ["o"] and server.names(SECRETS) == []


def test_the_next_run_waits_for_pods_that_are_still_at_work(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ending, "GONE_SECONDS", 0.2)
    run = run_of("lingers")
    add_jobs(server, str(run.id), OVER)
    labels, spec = {"run_id": str(run.id)}, {"containers": [{"name": "main"}]}
    server.add(PODS, {"metadata": {"name": "train-1", "labels": labels}, "spec": spec, "status": {"phase": "Running"}})
    server.add(
        PODS, {"metadata": {"name": "split-1", "labels": labels}, "spec": spec, "status": {"phase": "Succeeded"}}
    )
    assert going("lingers", server.cluster()) == []
    assert server.asked.count("GET pods") > 3
    assert "have not ended: train-1" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["context", "namespace"])
def test_a_run_of_another_cluster_is_refused_as_it_shares_the_store_and_is_never_closed(
    server: ApiServer, changed: str
) -> None:
    run = run_of(f"far-{changed}", {**PLACE, changed: "another"})
    with pytest.raises(PlatformError, match="sent to another cluster by stack medflow_local, with the same store"):
        others.refuse_second(f"far-{changed}", server.cluster(), PLACE)
    assert now(run) == "running"


def test_a_run_of_another_stack_is_refused_only_where_it_has_the_same_store(server: ApiServer) -> None:
    own = own_store()
    with stack_of_store("same-store", own):
        same = run_of("two-stacks")
    with stack_of_store("other-store", own.parent / "other"):
        other = run_of("two-stacks")
    assert going("two-stacks", server.cluster()) == [str(same.id)]
    with pytest.raises(PlatformError, match="by stack same-store") as error:
        others.refuse_second("two-stacks", server.cluster(), PLACE)
    assert f"medflow stack stop same-store {same.id}" in error.value.hint
    assert (now(same), now(other)) == ("running", "running")
    assert "DELETE" not in " ".join(server.asked)


def test_a_pipeline_notes_its_cluster_beside_what_else_it_notes() -> None:
    stacks.use_local()
    place = PlaceConfig(stack="a", steps={"default": StepPlace()})
    made = running.placed(definition("noted"), place, STACK, name="a").with_options(extra={"more": True})
    snapshot = made._create_snapshot(**made._run_args)
    assert snapshot.pipeline_configuration.extra == {others.SENT_TO: PLACE, "more": True}


# -- ends -------------------------------------------------------------------------------------------


def test_who_follows_a_run_ends_the_steps_of_an_orchestrator_that_is_over(server: ApiServer) -> None:
    run = run_of("followed")
    add_jobs(server, str(run.id), OVER)
    server.troubles = ["well"] * 3 + ["500"]
    with pytest.raises(PlatformError, match="BackoffLimitExceeded"):
        watching.follow(str(run.id), server.cluster(), print)
    assert now(run) == "failed" and server.names(JOBS) == ["o"]


def test_an_orchestrator_that_waits_for_a_token_which_is_gone_with_its_run_is_removed(server: ApiServer) -> None:
    run = run_of("lost-late")
    add_jobs(server, str(run.id))
    stacks.client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.FAILED))
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": "secret not found"}}
    server.add(
        PODS,
        {
            "metadata": {"name": "o-2", "labels": {"run_id": str(run.id), "job-name": "o"}},
            "spec": {"containers": [{"name": "main", "image": "i"}]},
            "status": {"phase": "Pending", "containerStatuses": [{"state": waiting}]},
        },
    )
    said: list[str] = []
    with pytest.raises(PlatformError, match="ended as failed"):
        watching.follow(str(run.id), server.cluster(), said.append)
    assert server.names(JOBS) == ["train"] and "may be incomplete" in said[-1]


def test_an_orchestrator_that_is_not_as_asked_ends_the_run(server: ApiServer) -> None:
    asked = StepPlace(priority="medflow-orchestrator", timeout=3000)
    whole = {**job_of(settings.pod_settings(asked, STACK.cluster)), "status": {}}
    for name, change in (("as-asked", {}), ("dropped", {"activeDeadlineSeconds": None})):
        run = run_of(name)
        spec = {**whole["spec"], "activeDeadlineSeconds": asked.timeout, "backoffLimit": asked.retries, **change}
        server.add(JOBS, {**whole, "metadata": {"name": "o", "labels": {"run_id": str(run.id)}}, "spec": spec})
        reason = reasons.fatal(server.cluster().jobs(str(run.id))[0], asked)
        if not change:
            assert reason is None
            continue
        with pytest.raises(PlatformError, match="the orchestrator: its pod is not what was asked for: timeout"):
            watching.follow(str(run.id), server.cluster(), print, asked)
        assert now(run) == "failed" and server.names(JOBS) == []


class Interrupted:
    """A pipeline whose user presses Ctrl-C when it has been sent, and before ZenML has said so."""

    def __init__(self, server: ApiServer, configured: Any) -> None:
        self.server, self.configured = server, configured
        self.name, self.invocations = configured.name, configured.invocations

    def prepare(self) -> None:
        pass

    def with_options(self, **given: Any) -> Interrupted:
        return Interrupted(self.server, self.configured.with_options(run_name=given["run_name"]))

    def __call__(self) -> PipelineRunResponse:
        run = submitted(self.configured)
        add_jobs(self.server, str(run.id))
        self.server.add(SECRETS, {"metadata": {"name": f"zenml-token-{run.snapshot.id}"}})
        raise KeyboardInterrupt


@pytest.fixture
def kubeconfig(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = STACK.cluster.context
    text = {
        "apiVersion": "v1", "kind": "Config", "current-context": context, "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "contexts": [{"name": context, "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(text))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))


@pytest.mark.parametrize("name", [None, "mine"])
def test_ctrl_c_while_a_run_is_sent_leaves_nothing_of_it(server: ApiServer, kubeconfig: None, name: str | None) -> None:
    dataset = f"sent-{name}"
    place = PlaceConfig(stack="a", steps={"default": StepPlace()})
    with pytest.raises(KeyboardInterrupt):
        running.execute(Interrupted(server, definition(dataset)), dataset, print, place, STACK, name=name)
    [run] = stacks.client().list_pipeline_runs(pipeline=dataset).items
    assert run.status == ExecutionStatus.STOPPED
    assert server.names(JOBS) == server.names(SECRETS) == []
    assert run.name == name or run.name.startswith(f"{dataset}-20")


def test_what_the_pods_of_a_stopped_run_had_said_is_kept(server: ApiServer) -> None:
    run = run_of("stopped")
    add_jobs(server, str(run.id))
    labels, spec = {"run_id": str(run.id), "job-name": "train"}, {"containers": [{"name": "main"}]}
    server.add(PODS, {"metadata": {"name": "train-1", "labels": labels}, "spec": spec, "status": {"phase": "Running"}})
    server.add(PODS, {"metadata": {"name": "train-1/log"}, "said": "epoch 1"})
    ending.stop(str(run.id), server.cluster())
    kept = own_store() / "runs" / str(run.id) / "pods"
    assert "epoch 1" in (kept / "train-1.log").read_text() and (kept / "train-1.json").is_file()
    assert (kept / "events.json").is_file()
    assert now(run) == "stopped" and server.names(JOBS) == []


@pytest.mark.parametrize("status", [ExecutionStatus.RUNNING, ExecutionStatus.COMPLETED])
def test_a_stopped_run_is_stopped_whatever_its_steps_were_doing(server: ApiServer, status: ExecutionStatus) -> None:
    run = run_of(f"stopped-while-{status.value}")
    add_jobs(server, str(run.id))
    server.add(SECRETS, {"metadata": {"name": f"zenml-token-{run.snapshot.id}"}})
    store = stacks.client().zen_store
    asked = StepRunRequest(
        name="nothing", project=run.project_id, pipeline_run_id=run.id, start_time=utc_now(),
        status=ExecutionStatus.RUNNING,
    )  # fmt: skip
    one = store.create_run_step(asked)
    if status.is_finished:
        store.update_run_step(one.id, StepRunUpdate(status=status))
    ending.stop(str(run.id), server.cluster())
    expected = "completed" if status.is_finished else "stopped"
    assert (now(run), store.get_run_step(one.id).status.value) == (expected, expected)
    assert server.names(JOBS) == server.names(SECRETS) == []


def test_stopping_a_run_that_is_over_leaves_its_records(server: ApiServer) -> None:
    run = run_of("over")
    add_jobs(server, str(run.id), OVER)
    stacks.client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.FAILED))
    kept = own_store() / "runs" / str(run.id) / "pods" / "events.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("[1]")
    ending.stop(str(run.id), server.cluster())
    assert kept.read_text() == "[1]" and now(run) == "failed" and server.names(JOBS) == []

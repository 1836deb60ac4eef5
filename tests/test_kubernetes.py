"""What a cluster's pods are asked for, compared with, and said to fail of; jobs are built by ZenML's own code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiClient
from zenml.integrations.kubernetes.manifest_utils import (
    build_job_manifest,
    build_pod_manifest,
    pod_template_manifest_from_pod,
)
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings
from zenml.utils.exception_utils import collect_exception_information

from medflow.config.sections import RunConfig, SourceConfig, TimmModel
from medflow.config.sections.place import READING, PlaceConfig, StepPlace, Toleration, Volume
from medflow.config.sections.schedules import ScheduleConfig
from medflow.config.sections.stack import StackConfig, StoreConfig
from medflow.errors import (
    ChecksFailed,
    ConfigError,
    DownloadError,
    ProcessLost,
    SplitError,
    TrainingError,
    WeightsUnavailable,
)
from medflow.platform import stack
from medflow.platform.context import StoredFiles
from medflow.platform.kubernetes import entrypoint, logs, probing, reasons, settings, watching
from medflow.platform.kubernetes.cluster import Observed
from medflow.platform.kubernetes.readback import dropped, quantity
from medflow.platform.kubernetes.scheduling import wanting
from medflow.platform.scheduling.records import Entry

STACK = StackConfig.model_validate(
    {
        "server": "http://zenml.example",
        "cluster": {"context": "test"},
        "image": "registry.example/medflow-step:abc",
        "registry": "registry.example",
        "store": {"uri": "s3://bucket"},
        "mlflow": {"uri": "http://mlflow.example"},
    }
)
ASKED = StepPlace(
    cpu=1.5,
    memory="3Gi",
    gpu=1,
    shm="1Gi",
    retries=2,
    timeout=600,
    node_selector={"disk": "ssd"},
    tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),),
    secrets=("kaggle",),
    volumes=(Volume(claim="images", path="/images"),),
    priority="medflow-batch",
    runtime_class="nvidia",
)


def job_of(pod_settings: dict[str, Any], asked: StepPlace = ASKED) -> dict[str, Any]:
    """The job that ZenML makes of pod settings, as the API server is sent it."""
    pod = build_pod_manifest(
        pod_name=None, image_name=STACK.image, command=["python"], args=[], privileged=False, env={"A": "b"},
        pod_settings=KubernetesPodSettings.model_validate(pod_settings), service_account_name="medflow-step",
    )  # fmt: skip
    job = build_job_manifest(
        job_name="x-train", pod_template=pod_template_manifest_from_pod(pod), backoff_limit=asked.retries,
        active_deadline_seconds=asked.timeout, annotations={"zenml.io/step-name": "train"},
    )  # fmt: skip
    plain: dict[str, Any] = ApiClient().sanitize_for_serialization(job)
    return plain


def test_what_zenml_makes_of_a_place_is_what_was_asked():
    assert dropped(ASKED, job_of(settings.pod_settings(ASKED, STACK.cluster))) == ()
    assert dropped(StepPlace(), job_of(settings.pod_settings(StepPlace(), STACK.cluster), StepPlace())) == ()


#: A key that ZenML knows, and what somebody could take it for.
PLANTED = {
    "node_selectors": ("node_selector", "node_selector"),
    "tolerations": ("toleration", "tolerations"),
    "volume_mounts": ("volumeMounts", "scratch"),
    "volumes": ("volume", "shm"),
    "env_from": ("envFrom", "secrets"),
    "container_security_context": ("security_context", "allowPrivilegeEscalation"),
    "additional_pod_spec_args": ("pod_spec", "runAsNonRoot"),
    "resources": ("resource", "memory (limits)"),
}


@pytest.mark.parametrize("key", PLANTED)
def test_a_setting_that_zenml_drops_without_a_word_is_told(key):
    planted, told = PLANTED[key]
    given = settings.pod_settings(ASKED, STACK.cluster)
    given[planted] = given.pop(key)
    assert any(told in line for line in dropped(ASKED, job_of(given)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"timeout": 60}, "timeout"),
        ({"retries": 0}, "retries"),
        ({"memory": "4Gi"}, "memory"),
        ({"gpu": 2}, "gpu"),
        ({"priority": "another"}, "priority: asked another, found medflow-batch"),
        ({"runtime_class": "another"}, "runtime_class: asked another, found nvidia"),
        ({"volumes": (Volume(claim="others", path="/images"),)}, "volumes, /images: asked others, found images"),
    ],
)
def test_a_pod_of_another_size_is_told(change, told):
    job = job_of(settings.pod_settings(ASKED, STACK.cluster))
    assert any(told in line for line in dropped(ASKED.model_copy(update=change), job))


def test_a_step_completed_by_default_gets_deadline_retries_and_what_was_asked():
    place = PlaceConfig(stack="a", steps={"default": StepPlace(retries=0), "train": ASKED})
    steps = settings.of_steps(place, {"train_x": "train", "split": "split"}, STACK)
    assert steps["train_x"]["settings"]["orchestrator"]["active_deadline_seconds"] == 600
    assert steps["train_x"]["retry"] == {"max_retries": 2}
    assert "retry" not in steps["split"]
    assert StepPlace.model_validate(steps["train_x"]["extra"][settings.ASKED]) == ASKED


def test_the_orchestrator_gets_its_own_priority():
    place = PlaceConfig(stack="a", orchestrator=StepPlace(priority="medflow-orchestrator"))
    given = settings.of_run(place, STACK)["orchestrator"]["orchestrator_pod_settings"]
    pod = job_of(given)["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "medflow-orchestrator" and "runtimeClassName" not in pod


def test_what_looks_from_inside_is_placed_as_steps_are():
    place = PlaceConfig(stack="a", steps={"default": ASKED})
    pod = probing.manifest(STACK, place, [], [])["spec"]["template"]["spec"]
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("medflow-batch", "nvidia")


def test_what_looks_from_inside_has_the_claims_of_all_steps():
    volumes = (Volume(claim="images", path="/a"), Volume(claim="masks", path="/b"))
    place = PlaceConfig(stack="a", steps={"default": StepPlace(volumes=volumes[:1]), "train": StepPlace()})
    pod = probing.manifest(STACK, place, [], ["images", "masks"])["spec"]["template"]["spec"]
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "images", "readOnly": True}, {"claimName": "masks", "readOnly": True}]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert len(set(mounts.values())) == len(mounts)


def test_each_absent_claim_is_told_and_what_a_webhook_misses_ends_the_look(monkeypatch: pytest.MonkeyPatch):
    volumes = tuple(Volume(claim=claim, path=f"/{claim}") for claim in ("a", "b", "c"))
    place = PlaceConfig(stack="a", steps={"default": StepPlace(volumes=volumes, secrets=("kaggle",))})
    unknown = 'persistentvolumeclaim "{}" not found'
    statuses = [
        {"conditions": [{"type": "PodScheduled", "status": "False", "message": unknown.format(claim)}]}
        for claim in ("b", "a")
    ]
    statuses += [waits_with("CreateContainerConfigError", 'secret "kaggle" not found')] * 2
    pods = [{"metadata": {"name": "p"}, "spec": {"containers": [{}]}, "status": status} for status in statuses]
    waits = [Observed({"status": {}}, (pod,)) for pod in pods]
    monkeypatch.setattr(probing, "_run", lambda here, body: (waits.pop(0), ""))
    found = list(probing.probe(SimpleNamespace(namespace="medflow"), STACK, place))
    assert [item.check.value for item in found] == ["volumes", "volumes", "secrets", "pod"] and not waits
    assert "no claim b" in found[0].found and "no claim a" in found[1].found
    assert "CreateContainerConfigError" in found[3].found


@pytest.mark.parametrize(
    ("store", "address"),
    [
        ({"uri": "s3://bucket/folder", "endpoint": "http://s3.example"}, "http://s3.example"),
        ({"uri": "s3://bucket/folder"}, "https://s3.us-east-1.amazonaws.com/bucket"),
        ({"uri": "s3://bucket", "region": "cn-north-1"}, "https://s3.cn-north-1.amazonaws.com.cn/bucket"),
    ],
)
def test_what_looks_from_inside_asks_for_the_store_amazons_too(store: dict[str, str], address: str):
    asked = STACK.model_copy(update={"store": StoreConfig.model_validate(store)})
    pod = probing.manifest(asked, PlaceConfig(stack="a"), [], [])["spec"]["template"]["spec"]
    assert f"store={address}" in pod["containers"][0]["args"]


def test_nothing_of_a_place_is_in_what_zenml_hashes():
    step = settings.of_steps(PlaceConfig(stack="a", steps={"default": ASKED}), {"train": "train"}, STACK)["train"]
    assert set(step) == {"settings", "extra", "retry"}, "ZenML's key takes environment, parameters, secrets, inputs"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1500m", 1.5), ("2", 2.0), ("1.5Gi", 1.5 * 2**30), ("500M", 5e8), ("129e6", 1.29e8), ("1Pi", 2.0**50)],
)
def test_quantities(text, value):
    assert quantity(text) == value
    assert quantity(None) is None


# -- reasons ---------------------------------------------------------------------------------------


def seen(job: dict[str, Any] | None = None, pod: dict[str, Any] | None = None, event: dict[str, Any] | None = None):
    base = job_of(settings.pod_settings(ASKED, STACK.cluster))
    base |= {"status": job or {}}
    pods = (
        ({"metadata": {"name": "x-train-1"}, "spec": base["spec"]["template"]["spec"], "status": pod},) if pod else ()
    )
    return Observed(base, pods, (event,) if event else ())


def ended_with(**state: Any) -> dict[str, Any]:
    return {"phase": "Failed", "containerStatuses": [{"name": "main", "state": {"terminated": state}}]}


def waits_with(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "main", "state": state}]}


def event(reason: str, message: str) -> dict[str, Any]:
    return {"reason": reason, "message": message, "involvedObject": {"name": "x-train"}, "metadata": {"uid": "1"}}


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "limit"}]}
LATE = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "longer"}]}
NO_ROOM = "0/1 nodes are available: 1 Insufficient memory."
NO_PRIORITY = 'Error creating: pods "x-train-" is forbidden: no PriorityClass with name medflow-step was found'
NO_RUNTIME = 'Error creating: pods "x-train-" is forbidden: pod rejected: RuntimeClass "nvidia" not found'
NO_NODE = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": NO_ROOM}]}


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (
            seen(pod=ended_with(reason="OOMKilled", exitCode=137)),
            "OOMKilled (exit code 137) at its memory limit of 3",
        ),
        (seen(pod=waits_with("ImagePullBackOff", "Back-off: not found")), "image registry.example/medflow-step:abc"),
        (seen(event=event("FailedCreate", 'violates PodSecurity "restricted"')), "refused by Pod Security"),
        (seen(event=event("FailedCreate", NO_PRIORITY)), "refused for its `priority`: Error creating: pods"),
        (seen(event=event("FailedCreate", NO_RUNTIME)), "refused for its `runtime_class`: Error creating: pods"),
    ],
)
def test_what_no_waiting_can_cure_is_fatal_and_told_in_one_line(of, words):
    told = reasons.fatal(of, ASKED)
    assert told is not None and words in told and "\n" not in told


@pytest.mark.parametrize(
    "of",
    [
        seen(),
        seen(pod=ended_with(reason="Error", exitCode=137)),  # killed by somebody: retried
        seen(pod=ended_with(reason="Error", exitCode=1)),
        seen(pod=waits_with("ErrImagePull", "connection refused")),  # tried again by the node
        seen(pod=NO_NODE),
        seen(event=event("FailedCreate", "exceeded quota: medflow")),
    ],
)
def test_what_may_still_come_is_not_fatal(of):
    assert reasons.fatal(of, ASKED) is None


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (seen(pod=NO_NODE), "unschedulable: 0/1 nodes are available"),
        (seen(event=event("FailedCreate", "exceeded quota: medflow, requested: pods=1")), "no room in the quota"),
        (seen(pod=waits_with("ErrImagePull", "connection refused")), "ErrImagePull: connection refused"),
    ],
)
def test_what_a_job_waits_for(of, words):
    assert words in str(reasons.pending(of))


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (seen(job=LATE, pod=NO_NODE), "not done within its timeout of 600 s; it waited: unschedulable"),
        (seen(job=LATE), "not done within its timeout of 600 s"),
        (seen(job=FAILED, pod=ended_with(reason="Error", exitCode=137)), "killed (exit code 137"),
        (seen(job=FAILED, pod=ended_with(reason="Error", exitCode=3)), "exit code 3"),
        (seen(job=FAILED), "BackoffLimitExceeded"),
    ],
)
def test_why_a_job_that_is_over_failed(of, words):
    assert words in str(reasons.ended(of))
    assert reasons.ended(seen()) is None


def test_a_planted_setting_is_fatal():
    job = seen()
    del job.job["spec"]["template"]["spec"]["nodeSelector"]
    assert "node_selector: asked {'disk': 'ssd'}, found {}" in str(reasons.fatal(job, ASKED))


@pytest.mark.parametrize("error", [ConfigError, SplitError, ChecksFailed, TrainingError])
def test_what_another_try_would_raise_again_is_not_retried(error):
    assert reasons.raised_for_good(seen(pod=ended_with(reason="Error", exitCode=error.exit_code)))


@pytest.mark.parametrize(
    "code", [0, 1, 137, 143, DownloadError.exit_code, WeightsUnavailable.exit_code, ProcessLost.exit_code]
)
def test_what_may_go_well_another_time_is_retried(code):
    assert not reasons.raised_for_good(seen(pod=ended_with(reason="Error", exitCode=code)))


def told_by(error: Exception, cause: Exception | None = None) -> tuple[str, str]:
    """Reason and hint of a step that raised, by way of what ZenML keeps of an error."""
    try:
        raise error from cause
    except type(error) as caught:
        kept = collect_exception_information(caught)
    return watching.raised(kept), watching.hint_of(kept)


def test_what_a_step_raised_is_told_as_on_this_machine_and_its_hint_survives():
    entrypoint.prepare()  # as a pod does: under which name ZenML keeps an error depends on the root of the sources
    ours = ConfigError("the column is empty", hint="name another one")
    assert told_by(ours) == ("the column is empty", "name another one")
    assert told_by(ours, ValueError("x")) == ("the column is empty", "name another one")
    assert told_by(OSError(28, "No space\n left")) == ("OSError: [Errno 28] No space left", "")
    assert told_by(ValueError(), ours) == ("ValueError", "")
    assert "see its pod's log" in watching.raised(None) and not watching.hint_of(None)


def test_kept_logs_are_found_by_step_and_the_oldest_first(tmp_path: Path):
    stack.use_local()
    store = stack.client().active_stack.artifact_store
    files = StoredFiles(store, f"{store.path}/{tmp_path.name}/pods")
    kept = {"b-x1": ("train_a", 2), "b-x0": ("train_a", 3), "a-x2": ("split", 1), "o-x3": (None, 0)}
    for pod, (step, second) in kept.items():
        labels = {"run_id": "1"} if step is None else {"step_name": step}
        facts = {"name": pod, "creationTimestamp": f"2026-11-21T19:56:0{second}+00:00", "labels": labels}
        files.write(f"{pod}.json", json.dumps({"metadata": facts}).encode())
        files.write(f"{pod}.log", f"{pod} says".encode())
    files.write("events.json", b"[]")
    found = logs.kept_in(files)
    assert [log.step for log in logs.of_step(found, None, "run r")] == ["orchestrator", "split", "train_a", "train_a"]
    assert [log.text for log in logs.of_step(found, "train_a", "run r")] == ["b-x1 says", "b-x0 says"]
    with pytest.raises(ConfigError, match=r"step 'merge' of run r has no log") as error:
        logs.of_step(found, "merge", "run r")
    assert error.value.hint == "steps with a log: orchestrator, split, train_a"


def test_a_path_lies_on_a_volume_where_every_step_that_reads_it_has_one():
    given = StepPlace(volumes=(Volume(claim="images", path="/images"),))
    readers = {"resolve": given, "ingest": given, "ingest_shard": given}
    place = PlaceConfig(stack="a", steps={"default": StepPlace(), **readers})
    assert place.on_volume("/images") and place.on_volume("/images/covid.zip")
    assert not any(place.on_volume(path) for path in ("/image", "/imagesets/x", "images/covid", "/"))
    assert not PlaceConfig(stack="a", steps={**place.steps, "ingest": StepPlace()}).on_volume("/images")


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ({"source": SourceConfig(kind="folder", path="/images/covid", metadata="/images/lesions.csv")}, True),
        ({"source": SourceConfig(kind="kaggle")}, True),
        ({"source": SourceConfig(kind="folder", path="/mine/covid")}, False),
        ({"source": SourceConfig(kind="folder", path="/images/covid", metadata="/mine/lesions.csv")}, False),
        ({"models": (TimmModel(name="test_resnet", pretrained="/mine/w.safetensors"),)}, False),
        ({"models": (TimmModel(name="test_resnet", pretrained="s3://bucket/w.safetensors"),)}, True),
    ],
)
def test_a_schedule_of_a_cluster_reads_nothing_of_this_machine(change, there):
    volumes = StepPlace(volumes=(Volume(claim="images", path="/images"),))
    place = PlaceConfig(stack="a", steps={"default": StepPlace(), **dict.fromkeys(READING, volumes)})
    config = RunConfig(dataset="phantom", **{"models": (TimmModel(name="test_resnet"),), **change})
    entry = Entry(ScheduleConfig(name="nightly", dataset="phantom", cron="0 2 * * *"), config)
    if there:
        wanting._check_files(entry, place)
        return
    with pytest.raises(
        ConfigError, match=r"schedule nightly: expected what pods can read again and again, found /mine"
    ):
        wanting._check_files(entry, place)


def test_the_pod_that_looks_whether_data_changed_sees_the_volume_and_the_credentials():
    looks = StepPlace(volumes=(Volume(claim="images", path="/images"),), secrets=("kaggle",))
    place = PlaceConfig(stack="a", steps={"default": StepPlace(), **dict.fromkeys(READING, looks)})
    schedule = ScheduleConfig(name="nightly", dataset="phantom", cron="0 2 * * *", only_when_the_data_changed=True)
    config = RunConfig(dataset="phantom", models=(TimmModel(name="test_resnet"),))
    given = wanting._place(Entry(schedule, config), place).orchestrator
    assert (given.volumes, given.secrets, given.memory) == (looks.volumes, ("kaggle",), place.orchestrator.memory)

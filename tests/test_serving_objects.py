"""A model in service as objects: the same release is the same YAML, it fits Kubernetes 1.34, and keeps the rules."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from manifests import Document, containers, pods, selects, wrong
from pydantic import ValidationError

from medflow import cli, door
from medflow.config.destinations import read_place
from medflow.config.sections.place import ServingPlace, Toleration
from medflow.config.sections.stack import StackConfig
from medflow.errors import ConfigError, PlatformError
from medflow.platform.kubernetes import rollout
from medflow.platform.kubernetes.cluster import Observed
from medflow.platform.kubernetes.model_image import serving_image
from medflow.platform.kubernetes.serving_objects import (
    BEFORE,
    MODEL_LABEL,
    RELEASE,
    Release,
    Served,
    kinds,
    object_name,
    release_in,
    rendered,
)

GOLDEN = Path(__file__).parent / "golden" / "model_in_service.yaml"
DNS_LABEL = re.compile(r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")
STACK = {
    "server": "http://zenml",
    "cluster": {"context": "nowhere"},
    "image": "registry.example.org/ml/medflow-step:1a2b",
    "registry": "registry.example.org/ml",
    "store": {"uri": "s3://medflow"},
    "mlflow": {"uri": "http://mlflow"},
}


def a_release(model: str = "covid_radiography", version: str = "3", **settings: object) -> Release:
    tag = f"covid_radiography-0123456789ab-{version * 12}"
    served = Served(
        model=model,
        version=version,
        bento=f"{model}:0123456789ab",
        package_digest="0123456789ab" + "0" * 52,
        bundle_digest="1" * 64,
        image=f"registry.example.org/ml/medflow-serving:{tag}@sha256:{'2' * 64}",
        base_digest=f"sha256:{'3' * 64}",
    )
    return Release(served=served, settings=ServingPlace(**settings), account="medflow-serving")


def by_kind(release: Release, before: Release | None = None) -> dict[str, Document]:
    return {each["kind"]: each for each in rendered(release, "medflow", replicas=2, before=before)}


def test_a_release_is_rendered_as_agreed() -> None:
    """`MEDFLOW_WRITE_GOLDEN=1 pytest tests/test_serving_objects.py` writes it down."""
    settings = {"pull_secrets": ("registry",), "settings": ServingPlace(node_selector={"pool": "cpu"})}
    release = a_release().model_copy(update=settings)
    text = yaml.safe_dump_all(rendered(release, "medflow", replicas=2, before=a_release(version="2")), sort_keys=False)
    if os.environ.get("MEDFLOW_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_object_fits_the_schema() -> None:
    tolerations = (Toleration(key="cpu", operator="Exists", effect="NoSchedule"),)
    for each in by_kind(a_release(tolerations=tolerations, port=8080), a_release()).values():
        assert wrong(each) == []


def test_everything_that_is_made_is_taken_away() -> None:
    made = {(each["apiVersion"], each["kind"]) for each in by_kind(a_release()).values()}
    assert made == set(kinds())


def test_the_pod_is_restricted() -> None:
    (pod,) = pods(by_kind(a_release())["Deployment"])
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    (container,) = containers(pod)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_no_pod_goes_before_another_answers_and_each_may_end_what_it_began() -> None:
    spec = by_kind(a_release(drain=20))["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    (leaving,) = (item["value"] for item in container["env"] if item["name"] == door.LEAVING_VARIABLE)
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sh", "-c", f"touch {leaving}; sleep 20"]
    assert Path(leaving).parent == Path(container["volumeMounts"][0]["mountPath"])
    assert pod["terminationGracePeriodSeconds"] > 20 + 30  # uploads and answers have 30 s (medflow.door)


@pytest.mark.parametrize(("memory", "left"), [("256Mi", 96), ("512Mi", 128), ("1Gi", 640), ("2Gi", 1664)])
def test_images_may_take_what_memory_a_pod_has_left(memory: str, left: int) -> None:
    (pod,) = pods(by_kind(a_release(memory=memory))["Deployment"])
    given = {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}
    assert given[door.IMAGE_BYTES_VARIABLE] == str(left * 2**20)


def test_selectors_select_the_pods_of_this_model_alone() -> None:
    made = by_kind(a_release())
    (own,) = pods(made["Deployment"])
    (other,) = pods(by_kind(a_release("phantom"))["Deployment"])
    selectors = [
        {"matchLabels": made["Service"]["spec"]["selector"]},
        made["Deployment"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"],
        made["NetworkPolicy"]["spec"]["podSelector"],
    ]
    for selector in selectors:
        assert selects(selector, own["metadata"]["labels"]) and not selects(selector, other["metadata"]["labels"])


def test_nothing_goes_out_but_names() -> None:
    spec = by_kind(a_release(reached_from={"team": "ward"}))["NetworkPolicy"]["spec"]
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53}
    assert spec["ingress"][0]["from"] == [{"namespaceSelector": {"matchLabels": {"team": "ward"}}}]


def test_pods_are_restarted_by_what_concerns_them_alone() -> None:
    template = by_kind(a_release())["Deployment"]["spec"]["template"]
    assert by_kind(a_release(replicas=(1, 9), load=50, port=8080))["Deployment"]["spec"]["template"] == template
    assert by_kind(a_release(), before=a_release(version="2"))["Deployment"]["spec"]["template"] == template
    assert by_kind(a_release(version="4"))["Deployment"]["spec"]["template"] != template
    assert by_kind(a_release(memory="3Gi"))["Deployment"]["spec"]["template"] != template


def test_a_release_is_read_back_from_what_was_rendered() -> None:
    before = a_release(version="2", replicas=(1, 1), memory="3Gi")
    annotations = by_kind(a_release(), before)["Deployment"]["metadata"]["annotations"]
    assert release_in(annotations, RELEASE) == a_release()
    assert release_in(annotations, BEFORE) == before
    assert release_in({}, BEFORE) is None
    with pytest.raises(PlatformError, match="another version of medflow"):
        release_in({RELEASE: '{"served": {}}'}, RELEASE)


@given(st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True))
def test_any_model_has_a_name_that_a_service_may_have(model: str) -> None:
    assert DNS_LABEL.match(object_name(model))
    assert by_kind(a_release(model))["Service"]["metadata"]["labels"][MODEL_LABEL] == model


# -- settings ------------------------------------------------------------------------------------


def test_the_shipped_place_says_how_models_are_served() -> None:
    assert read_place("kubernetes").serving.replicas[0] >= 2  # no request is lost when a node is emptied


@pytest.mark.parametrize(
    "wrong", [{"replicas": (0, 1)}, {"replicas": (3, 2)}, {"reached_from": {}}, {"memory": "1 GB"}]
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServingPlace(**wrong)


def test_the_serving_image_lies_beside_the_step_image() -> None:
    stack = StackConfig(**STACK)
    assert str(serving_image(stack)) == "registry.example.org/ml/medflow-serving:1a2b"
    other = stack.model_copy(update={"serving_image": "ghcr.io/a/serving:7"})
    assert str(serving_image(other)) == "ghcr.io/a/serving:7"
    for image in ("ghcr.io/a/steps:7", f"ghcr.io/a/medflow-step@sha256:{'0' * 64}"):
        with pytest.raises(ConfigError, match="no serving_image") as told:
            serving_image(stack.model_copy(update={"image": image}))
        assert "serving_image: registry.example.org/ml/medflow-serving:TAG" in told.value.hint


# -- rollouts ------------------------------------------------------------------------------------


def a_deployment(
    generation: int = 2, observed: int = 2, updated: int = 2, old: int = 0, available: int = 2
) -> Document:
    conditions = [{"type": "Progressing", "reason": "NewReplicaSetAvailable"}]
    status = {"observedGeneration": observed, "updatedReplicas": updated, "replicas": updated + old,
              "availableReplicas": available, "conditions": conditions}  # fmt: skip
    return {"metadata": {"generation": generation}, "spec": {"replicas": 2}, "status": status}


def test_a_rollout_is_over_when_only_new_pods_are_left_and_answer() -> None:
    assert rollout.settled(a_deployment())
    for unfinished in ({"observed": 1}, {"updated": 1}, {"old": 1}, {"available": 1}):
        assert not rollout.settled(a_deployment(**unfinished)), unfinished
    assert not rollout.settled({"metadata": {"generation": 1}, "spec": {"replicas": 1}})
    assert rollout.arrived(a_deployment(available=1)) and not rollout.arrived(a_deployment(observed=1))


def test_what_the_cluster_tells_is_one_line() -> None:
    status = {"containerStatuses": [{"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]}
    limits = {"containers": [{"image": "x", "resources": {"limits": {"memory": "64Mi"}}}]}
    pod = {"metadata": {"name": "p"}, "spec": limits, "status": status}
    seen = rollout.Rollout(a_deployment(), Observed({"metadata": {"name": "set"}}, (pod,)))
    assert (seen.ready, seen.wanted) == (0, 2)
    why = rollout.hopeless(seen, None)  # type: ignore[arg-type]
    assert why is not None and "OOMKilled" in why and "64Mi" in why and "raise its `memory`" in why


def a_pod(name: str, *, ready: bool, **status: object) -> Document:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    facts = {"name": name, "creationTimestamp": "2026-11-30T00:00:00Z"}
    return {"metadata": facts, "spec": {"containers": [{"image": "x"}]}, "status": {"conditions": conditions, **status}}


def why_not(*found: Document, events: tuple[Document, ...] = ()) -> str | None:
    seen = rollout.Rollout(a_deployment(), Observed({"metadata": {"name": "set"}}, found, events))
    return rollout.hopeless(seen, None)  # type: ignore[arg-type]


def test_what_once_ended_a_pod_that_answers_again_ends_no_rollout() -> None:
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    past = {"containerStatuses": [{"restartCount": 1, "ready": True, "lastState": ended}]}
    coming = a_pod("b", ready=False, containerStatuses=[{"restartCount": 0, "ready": False}])
    assert why_not(a_pod("a", ready=True, **past), coming) is None
    assert "OOMKilled" in str(why_not(a_pod("a", ready=False, **past), coming))


def test_a_pod_that_is_ready_was_made_whatever_was_said_before() -> None:
    said = {"reason": "FailedCreate", "message": "violates PodSecurity", "involvedObject": {"name": "set"},
            "metadata": {"uid": "e"}, "firstTimestamp": "2026-11-29T23:59:00Z"}  # fmt: skip
    assert "refused by Pod Security" in str(why_not(events=(said,)))
    assert why_not(a_pod("a", ready=True), events=(said,)) is None


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(STACK))
    (tmp_path / "place.yaml").write_text(
        f"stack: {tmp_path}/stack.yaml\nserving: {{replicas: [1, 3], memory: 512Mi}}\n"
    )
    return str(tmp_path / "place.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deploy", "phantom@3", "--stage", "production"], "says which version, and so does --stage"),
        (["deploy", "phantom@3", "--previous"], "whatever its version"),
        (["deploy", "phantom", "--stage", "staging", "--previous"], "whatever its version"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str, place: str, capsys) -> None:
    assert cli.run([*words, "--on", place]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["deploy", "undeploy", "deployments"])
def test_a_model_is_deployed_to_a_cluster(verb: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [verb] if verb == "deployments" else [verb, "phantom"]
    assert cli.run([*words, "--on", "local"]) == 2
    assert "`local` is this machine" in capsys.readouterr().err


def test_a_context_that_is_not_there_is_named(place: str, capsys) -> None:
    assert cli.run(["deployments", "--on", place]) == 9
    assert "the kubeconfig has no usable context 'nowhere'" in capsys.readouterr().err

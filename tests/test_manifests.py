"""infra/kubernetes as kubectl renders it: fits the API of Kubernetes 1.34, and keeps the rules of the house.

tests/kubernetes/test_manifests.py applies the same to a real API server.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import manifests
import pytest
from manifests import Document, containers, documents, name, pods, rendered, selects, wrong

from medflow.config.destinations import read_place
from medflow.platform.kubernetes import preflight, serving_objects
from medflow.platform.kubernetes.settings import STARTS_NODES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "infra" / "kubernetes"
OVERLAYS = manifests.overlays()
IMAGE = re.compile(r"^(?!.*:latest$)[a-z0-9./:-]+:[A-Za-z0-9._-]+$")
#: Labels that ZenML 0.98 gives the pods of a run, of which the orchestrator's have no step.
STEP_LABELS = dict.fromkeys(("project_id", "pipeline", "run_id", "run_name", "step_name"), "x")
ORCHESTRATOR_LABELS = dict.fromkeys(("project_id", "pipeline", "run_id", "run_name"), "x")


def _templates(overlay: str) -> list[tuple[str, Document]]:
    return [(name(document), pod) for document in rendered(overlay) for pod in pods(document)]


def test_there_are_three_overlays() -> None:
    assert OVERLAYS == ["dev", "gpu", "production"]


def test_what_is_rendered_comes_from_these_sources() -> None:
    lines = (manifests.RENDERED / "sources.sha256").read_text().splitlines()
    listed = {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}
    found = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in SOURCES.rglob("*.yaml")}  # fmt: skip
    assert listed == found, "infra/scripts/render writes tests/golden/kubernetes anew"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_what_is_kept(overlay: str) -> None:
    done = subprocess.run(["kubectl", "kustomize", SOURCES / "overlays" / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert documents(done.stdout) == rendered(overlay)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_fits_the_schema(overlay: str) -> None:
    assert [line for document in rendered(overlay) for line in wrong(document)] == []


def test_the_schema_refuses_what_the_server_would() -> None:
    deployment = next(document for document in rendered("dev") if document["kind"] == "Deployment")
    for spoil in (
        lambda pod: pod["containers"][0].update(imagePolicy="Always"),
        lambda pod: pod["containers"][0].update(ports=[{"containerPort": "http"}]),
        lambda pod: pod["containers"][0].pop("name"),
        lambda pod: pod["securityContext"].update(runAsNonRoot="yes"),
    ):
        spoiled = copy.deepcopy(deployment)
        spoil(spoiled["spec"]["template"]["spec"])
        assert wrong(spoiled), spoil


def test_the_schemas_are_small() -> None:
    assert manifests.SCHEMAS.stat().st_size < 300_000


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_asks_for_resources_and_has_a_limit(overlay: str) -> None:
    for who, pod in _templates(overlay):
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), who
            assert "memory" in container["resources"]["limits"], who


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(overlay: str) -> None:
    for who, pod in _templates(overlay):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, who
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, who
        assert pod["spec"]["automountServiceAccountToken"] is False, who
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, who


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_namespace_is_restricted(overlay: str) -> None:
    namespaces = [document for document in rendered(overlay) if document["kind"] == "Namespace"]
    assert sorted(name(document) for document in namespaces) == ["Namespace medflow", "Namespace medflow-platform"]
    for document in namespaces:
        assert document["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_has_a_tag_that_stays(overlay: str) -> None:
    for who, pod in _templates(overlay):
        for container in containers(pod):
            assert IMAGE.match(container["image"]), who
            assert container["imagePullPolicy"] == "IfNotPresent", who


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_server_is_probed(overlay: str) -> None:
    for who, pod in _templates(overlay):
        for container in containers(pod):
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), who


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_come_by_reference(overlay: str) -> None:
    everything = rendered(overlay)
    assert [name(document) for document in everything if document["kind"] == "Secret"] == []
    for who, pod in _templates(overlay):
        for container in containers(pod):
            for variable in container.get("env", []):
                secret = re.search(r"PASSWORD|KEY|TOKEN|STORE_UR[IL]", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"], f"{who}: {variable['name']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_example_names_every_secret_and_no_value(overlay: str) -> None:
    keys = {path.stem: path.read_text().splitlines() for path in (SOURCES / "secrets.example").glob("*.env")}
    assert all(line.endswith("=") for lines in keys.values() for line in lines)
    for who, pod in _templates(overlay):
        for container in containers(pod):
            for variable in container.get("env", []):
                wanted = variable.get("valueFrom", {}).get("secretKeyRef")
                assert wanted is None or f"{wanted['key']}=" in keys[wanted["name"]], who
            for source in container.get("envFrom", []):
                assert "secretRef" not in source or source["secretRef"]["name"] in keys, who


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_reference_has_what_it_refers_to(overlay: str) -> None:
    everything = rendered(overlay)
    there = {(document["kind"], document["metadata"]["name"]) for document in everything}
    for who, pod in _templates(overlay):
        spec = pod["spec"]
        assert ("PriorityClass", spec["priorityClassName"]) in there, who
        assert "serviceAccountName" not in spec or ("ServiceAccount", spec["serviceAccountName"]) in there, who
        for volume in spec["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in there, who
    for document in everything:
        if document["kind"].endswith("RoleBinding"):
            assert (document["roleRef"]["kind"], document["roleRef"]["name"]) in there, name(document)
            assert all((subject["kind"], subject["name"]) in there for subject in document["subjects"]), name(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_and_budgets_select_pods(overlay: str) -> None:
    labels = [pod["metadata"]["labels"] for _, pod in _templates(overlay)]
    for document in rendered(overlay):
        if document["kind"] == "Service":
            selector: Document = {"matchLabels": document["spec"]["selector"]}
        elif document["kind"] == "PodDisruptionBudget":
            selector = document["spec"]["selector"]
        else:
            continue
        assert any(selects(selector, each) for each in labels), name(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_policies_select_pods_that_exist(overlay: str) -> None:
    own = [pod["metadata"]["labels"] for _, pod in _templates(overlay)]
    runs = [STEP_LABELS, ORCHESTRATOR_LABELS, STEP_LABELS | STARTS_NODES, {"jobset.sigs.k8s.io/jobset-name": "x"}]
    by_namespace = {"medflow-platform": own, "medflow": runs}
    for document in rendered(overlay):
        if document["kind"] == "NetworkPolicy":
            here = by_namespace[document["metadata"]["namespace"]]
            assert any(selects(document["spec"]["podSelector"], labels) for labels in here), name(document)
            for peer in _peers(document):
                assert any(selects(peer, labels) for labels in own + runs), name(document)


def _peers(policy: Document) -> list[Document]:
    rules = [(rule, "from") for rule in policy["spec"].get("ingress", [])]
    rules += [(rule, "to") for rule in policy["spec"].get("egress", [])]
    peers = [peer for rule, side in rules for peer in rule.get(side, [])]
    return [peer["podSelector"] for peer in peers if "podSelector" in peer]


@pytest.mark.parametrize(
    ("policy", "labels"), [("orchestrator", ORCHESTRATOR_LABELS), ("starts-nodes", STEP_LABELS | STARTS_NODES)]
)
def test_only_what_starts_pods_reaches_the_api_server(policy: str, labels: dict[str, str]) -> None:
    found = next(document for document in rendered("dev") if name(document) == f"NetworkPolicy {policy}")
    assert selects(found["spec"]["podSelector"], labels)
    assert not selects(found["spec"]["podSelector"], STEP_LABELS)
    assert found["spec"]["egress"] == [{"ports": [{"protocol": "TCP", "port": 6443}]}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_traffic_is_denied_first(overlay: str) -> None:
    denied = {document["metadata"]["namespace"] for document in rendered(overlay)
              if name(document) == "NetworkPolicy deny-all"
              and document["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}  # fmt: skip
    assert denied == {"medflow", "medflow-platform"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_role_reads_secrets_or_takes_all(overlay: str) -> None:
    for document in rendered(overlay):
        for rule in document.get("rules", []) if document["kind"].endswith("Role") else []:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], name(document)
            assert "secrets" not in rule["resources"] or not {"get", "list", "watch"} & set(rule["verbs"])
            assert document["kind"] == "Role" or set(rule["verbs"]) <= {"get", "list"}, "cluster-wide, it only looks"


def _rights(kind: str, role: str) -> set[tuple[str, str, str]]:
    """Verb, API group and resource."""
    [found] = [each for each in rendered("dev") if each["kind"] == kind and each["metadata"]["name"] == role]
    return {
        (verb, group, resource)
        for rule in found["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_who_submits_runs_has_what_the_preflight_asks_for_and_makes_no_pod() -> None:
    rights = _rights("Role", "medflow-client")
    assert set(preflight.RIGHTS) <= rights
    assert {right for right in rights if right[2] == "pods"} == {("list", "", "pods")}
    assert not [right for right in rights if right[0] in ("watch", "update", "deletecollection")]


def test_production_has_no_database_inside() -> None:
    assert {name(document) for document in rendered("production") if document["kind"] == "Deployment"} == {
        "Deployment zenml-server", "Deployment mlflow-server",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["kubernetes", "small"])
def test_steps_give_way_to_what_watches_them_and_that_to_servers_and_models_in_service(place: str) -> None:
    asked = read_place(place)
    steps = {step.priority for step in asked.steps.values()}
    there = {each["metadata"]["name"]: each for each in rendered("dev") if each["kind"] == "PriorityClass"}
    order = [*steps, asked.orchestrator.priority, "medflow-platform", serving_objects.PRIORITY]
    values = [there[each]["value"] for each in order]
    assert values == sorted(set(values)) and set(order) == there.keys()
    assert there["medflow-step"]["preemptionPolicy"] == "Never"


def test_gpu_adds_a_runtime_class_with_its_toleration() -> None:
    there = {name(document): document for document in rendered("gpu")}
    runtime = there["RuntimeClass nvidia"]
    assert runtime["handler"] == "nvidia"
    assert runtime["scheduling"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert there["ResourceQuota medflow"]["spec"]["hard"]["requests.nvidia.com/gpu"] == "8"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_production_is_applied_only_for_a_host_of_ones_own(tmp_path: Path) -> None:
    """With a `kubectl` that renders as the real one does, and only notes what it would apply."""
    program = tmp_path / "kubectl"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = kustomize ] && exec {shutil.which("kubectl")} "$@"\necho "$@" >>{tmp_path}/applied\n'
    )
    program.chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TAG": "tag"}
    command = [SOURCES.parent / "scripts" / "apply", "production"]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert done.returncode == 1 and "zenml.example.com" in done.stderr and "INGRESS_HOST" in done.stderr
    assert not (tmp_path / "applied").exists()
    done = subprocess.run(command, env={**given, "INGRESS_HOST": "zenml.clinic.org"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "applied").read_text().startswith("apply --server-side --force-conflicts -k ")
    made = subprocess.run(
        ["kubectl", "kustomize", ROOT / "build/kubernetes/production"], capture_output=True, text=True
    )
    (ingress,) = [each for each in documents(made.stdout) if each["kind"] == "Ingress"]
    assert ingress["spec"]["tls"][0]["hosts"] == [ingress["spec"]["rules"][0]["host"]] == ["zenml.clinic.org"]

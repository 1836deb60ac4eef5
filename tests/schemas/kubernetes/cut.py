"""Cuts the schemas that tests/test_manifests.py reads from the API server of the current cluster.

usage: python tests/schemas/kubernetes/cut.py

Kept are the kinds below with what they refer to: names, types, requirements and choices. Descriptions and server-side
extensions go, and an object with named fields takes no others, as the server's strict validation does.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("schemas.json")
KINDS = {
    "api/v1": ("Namespace", "ServiceAccount", "Service", "ConfigMap", "Secret", "ResourceQuota", "LimitRange",
               "PersistentVolumeClaim", "Pod"),
    "apis/apps/v1": ("Deployment",),
    "apis/autoscaling/v2": ("HorizontalPodAutoscaler",),
    "apis/batch/v1": ("Job", "CronJob"),
    "apis/networking.k8s.io/v1": ("NetworkPolicy", "Ingress"),
    "apis/node.k8s.io/v1": ("RuntimeClass",),
    "apis/policy/v1": ("PodDisruptionBudget",),
    "apis/rbac.authorization.k8s.io/v1": ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
    "apis/scheduling.k8s.io/v1": ("PriorityClass",),
    "apis/trainer.kubeflow.org/v1alpha1": ("TrainJob", "TrainingRuntime"),
}  # fmt: skip
KEPT = ("type", "required", "enum", "items", "properties", "additionalProperties", "anyOf", "allOf", "oneOf")
REFERENCE = "#/components/schemas/"


def main() -> None:
    kinds, definitions = {}, {}
    for path, names in KINDS.items():
        found = json.loads(_get(f"/openapi/v3/{path}"))["components"]["schemas"]
        for name in names:
            root = _root(found, path, name)
            kinds[f"{path.removeprefix('apis/').removeprefix('api/')}/{name}"] = {"$ref": f"#/definitions/{root}"}
            _collect(root, found, definitions)
    document = {"kinds": kinds, "definitions": dict(sorted(definitions.items()))}
    FILE.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True).replace('},"', '},\n"') + "\n")
    print(f"{FILE}: {len(kinds)} kinds, {FILE.stat().st_size} bytes")


def _get(path: str) -> str:
    return subprocess.run(["kubectl", "get", "--raw", path], check=True, capture_output=True, text=True).stdout


def _root(found: dict[str, Any], path: str, kind: str) -> str:
    version = path.rpartition("/")[2]
    for name, schema in found.items():
        known = schema.get("x-kubernetes-group-version-kind", [])
        if len(known) == 1 and known[0]["kind"] == kind and known[0]["version"] == version:
            return name
    raise SystemExit(f"{path} has no {kind}")


def _collect(name: str, found: dict[str, Any], into: dict[str, Any]) -> None:
    if name in into:
        return
    into[name] = None  # a schema may refer to itself
    into[name] = _cut(found[name])
    for other in re.findall(r'"#/definitions/([^"]+)"', json.dumps(into[name])):
        _collect(other, found, into)


def _cut(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return {"$ref": f"#/definitions/{schema['$ref'].removeprefix(REFERENCE)}"}
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    if len(schema.get("allOf", ())) == 1:  # how OpenAPI 3.0 hangs a description on a reference
        return _cut(schema["allOf"][0])
    cut = {key: _inner(key, schema[key]) for key in KEPT if key in schema}
    if "properties" in cut and not schema.get("x-kubernetes-preserve-unknown-fields"):
        cut["additionalProperties"] = False
    return cut


def _inner(key: str, value: Any) -> Any:
    if key == "properties":
        # A server fills `status` in; nobody sends it.
        return {name: _cut(inner) for name, inner in value.items() if name not in ("status", "managedFields")}
    if key in ("anyOf", "allOf", "oneOf"):
        return [_cut(inner) for inner in value]
    return _cut(value) if isinstance(value, dict) else value


if __name__ == "__main__":
    main()

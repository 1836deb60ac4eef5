"""Kubernetes manifests for tests: documents, their containers, and the trimmed schemas of Kubernetes 1.34."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

TESTS = Path(__file__).resolve().parent
OVERLAYS = TESTS.parent / "infra" / "kubernetes" / "overlays"
RENDERED = TESTS / "golden" / "kubernetes"
SCHEMAS = TESTS / "schemas" / "kubernetes" / "schemas.json"

Document = dict[str, Any]


def overlays() -> list[str]:
    return sorted(path.name for path in OVERLAYS.iterdir())


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


@cache
def rendered(overlay: str) -> list[Document]:
    return documents((RENDERED / f"{overlay}.yaml").read_text())


def name(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def wrong(document: Document) -> list[str]:
    """What the API server would refuse or drop: one line each."""
    validator = _validator(f"{document['apiVersion']}/{document['kind']}")
    return [f"{name(document)}: {'.'.join(map(str, error.path))}: {error.message}" for error in
            validator.iter_errors(document)]  # fmt: skip


@cache
def _validator(kind: str) -> jsonschema.Draft7Validator:
    schemas = json.loads(SCHEMAS.read_text())
    return jsonschema.Draft7Validator({**schemas["kinds"][kind], "definitions": schemas["definitions"]})


def pods(document: Document) -> Iterator[Document]:
    """The pod templates in a document."""
    if document["kind"] in ("Deployment", "Job"):
        yield document["spec"]["template"]
    elif document["kind"] == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]
    elif document["kind"] == "Pod":
        yield document


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector matches labels (Kubernetes API reference, LabelSelector)."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(rule, labels) for rule in selector.get("matchExpressions", [])
    )


def _holds(rule: Document, labels: dict[str, str]) -> bool:
    has = rule["key"] in labels
    match rule["operator"]:
        case "Exists":
            return has
        case "DoesNotExist":
            return not has
        case "In":
            return labels.get(rule["key"]) in rule["values"]
        case "NotIn":
            return labels.get(rule["key"]) not in rule["values"]
    raise ValueError(rule["operator"])

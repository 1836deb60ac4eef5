"""A `kubectl` for a folder of PATH, whose cluster is a folder of JSON files: the words that infra/scripts say to it.

``KUBECTL_CLUSTER`` is the folder; where ``KUBECTL_FAILS`` is part of the command line, no answer comes, as from a
cluster that is away. What is applied unchanged keeps its resourceVersion, as Kubernetes does it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

CLUSTER = Path(os.environ.get("KUBECTL_CLUSTER", ""))


def path_of(namespace: str, kind: str, name: str) -> Path:
    return CLUSTER / namespace / kind / f"{name}.json"


def get(namespace: str, object_name: str, given: dict[str, str]) -> None:
    path = path_of(namespace, *object_name.split("/"))
    if path.exists():
        found = json.loads(path.read_text())
        sys.stdout.write(
            re.sub(r"\{\.([^}]*)\}", lambda part: value_at(found, part[1]), given["-o"].removeprefix("jsonpath="))
        )
    elif "--ignore-not-found" not in given:
        sys.exit(f'Error from server (NotFound): "{object_name}" not found')


def value_at(found: Any, path: str) -> str:
    for key in path.split("."):
        found = found.get(key, "")
    return str(found)


def create(namespace: str, words: list[str], given: dict[str, str]) -> None:
    kind, name = words[0], words[-1]
    if kind == "namespace":
        store({"kind": kind, "metadata": {"name": name, "namespace": namespace}})
        return
    lines = Path(given["--from-env-file"]).read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line)
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    document = {"kind": kind, "metadata": {"name": name, "namespace": namespace}}
    json.dump({**document, "data": data if kind == "secret" else values}, sys.stdout)


def store(document: dict[str, Any]) -> None:
    meta = document["metadata"]
    path = path_of(meta["namespace"], document["kind"], meta["name"])
    before = json.loads(path.read_text()) if path.exists() else {"metadata": {"resourceVersion": 0}}
    version = before["metadata"].pop("resourceVersion")
    if before != document:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**document, "metadata": {**meta, "resourceVersion": version + 1}}))


def restart(namespace: str, object_name: str) -> None:
    path = path_of(namespace, *object_name.split("/"))
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "restarts": found.get("restarts", 0) + 1}))


def main() -> None:
    if (part := os.environ.get("KUBECTL_FAILS")) and part in " ".join(sys.argv):
        sys.exit("Unable to connect to the server: net/http: TLS handshake timeout")
    words, given = read(sys.argv[1:])
    namespace = given.get("-n", "medflow-platform")
    match words:
        case ["get", object_name]:
            get(namespace, object_name, given)
        case ["create", *rest]:
            create(namespace, rest, given)
        case ["apply"]:
            store(json.load(sys.stdin))
        case ["rollout", "restart", object_name]:
            restart(namespace, object_name)
        case _:
            sys.exit(f"not planted: {words}")


def read(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words and options of a command line. Not by argparse: kubectl is called thirty times a script."""
    words, given = [], {}
    rest = iter(arguments)
    for each in rest:
        name, _, value = each.partition("=")
        if not name.startswith("-"):
            words.append(each)
        else:
            given[name] = next(rest) if name in ("-n", "-o", "-f") else value
    return words, given


if __name__ == "__main__":
    main()

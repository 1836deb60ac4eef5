"""What a run asks of a Kubernetes API server, played by this machine: jobs, pods, events, and its troubles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from medflow.platform.kubernetes import transport
from medflow.platform.kubernetes.cluster import Cluster

NAMESPACE = "medflow"
JOBS, PODS, EVENTS = "jobs", "pods", "events"


class ApiServer:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}
        self.asked: list[str] = []
        """Each request: its verb and the end of its path."""
        self.troubles: list[str] = []
        """One for each request to come: a status and its words, `drop`, `lost` (done, and not
        said), `silent`, or `well`."""
        self.always: str | None = None
        """The trouble of every request after those."""
        self.closing = Event()
        self.url = ""

    def add(self, kind: str, document: dict[str, Any]) -> None:
        document["metadata"].setdefault("creationTimestamp", "2026-11-21T12:00:00Z")
        self.objects.setdefault(kind, {})[document["metadata"]["name"]] = document

    def names(self, kind: str) -> list[str]:
        return sorted(self.objects.get(kind, {}))

    def cluster(self) -> Cluster:
        with transport.limited():
            api = client.ApiClient(client.Configuration(host=self.url))
        return Cluster(client.CoreV1Api(api), client.BatchV1Api(api), NAMESPACE)

    def answer(self, verb: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(path)
        _, _, rest = parts.path.partition(f"/namespaces/{NAMESPACE}/")
        # What belongs to no namespace, such as nodes, is only listed.
        kind, _, name = (rest or parts.path.rpartition("/")[2]).partition("/")
        found = self.objects.setdefault(kind, {})
        if verb == "POST":
            document = json.loads(body)
            if document["metadata"]["name"] in found:
                return 409, status(409, "AlreadyExists", f"{kind} already exists")
            self.add(kind, document)
            return 201, document
        if not name:
            return 200, {"kind": "List", "items": _selected(found, parse_qs(parts.query))}
        if name not in found:
            return 404, status(404, "NotFound", f"{kind} {name!r} not found")
        return 200, found.pop(name) if verb == "DELETE" else found[name]


def _selected(found: dict[str, dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    wanted = [item.split("=") for text in query.get("labelSelector", []) for item in text.split(",")]
    about = [text.removeprefix("involvedObject.name=") for text in query.get("fieldSelector", [])]
    return [
        item
        for item in found.values()
        if all(item["metadata"].get("labels", {}).get(key) == value for key, value in wanted)
        and all(item["involvedObject"]["name"] == name for name in about)
    ]


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": message}


@contextmanager
def served() -> Iterator[ApiServer]:
    state = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.asked.append(f"{self.command} {urlsplit(self.path).path.rpartition('/')[2]}")
            trouble = state.troubles.pop(0) if state.troubles else state.always or "well"
            if trouble == "silent":
                state.closing.wait(20)
            if trouble[:3].isdigit():
                code, words = int(trouble[:3]), trouble[4:] or "said by the test"
                self._say(code, status(code, "Trouble", words))
            elif trouble in ("well", "lost"):
                code, document = state.answer(self.command, self.path, body)
                if trouble == "well":
                    self._say(code, document)
            self.close_connection = True

        def _say(self, code: int, document: dict[str, Any]) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            said = document.get("said")  # a pod's log is plain text
            self.wfile.write((json.dumps(document) if said is None else said).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()

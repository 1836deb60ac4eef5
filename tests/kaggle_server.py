"""A Kaggle on this machine: the part of its protocol that downloading a dataset takes, and planted faults.

``KAGGLE_API_ENVIRONMENT=TEST`` makes the real client call ``http://localhost:7777``; the port is the client's.
As at Kaggle, the API answers a download with a redirect to a storage at another address, with a signature in
the query; the storage knows ranges and checksums, and must never be sent the user's credentials.

::

    with serving() as server:
        server.publish("owner/name", {1: zip_bytes})
        server.plant("owner/name", cuts=1)

Only one can run at a time on a machine: a second one waits for the first (a file lock, at most LOCK_SECONDS).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PORT = 7777
LOCK_SECONDS = 300.0
TOKEN = "KGAT_only-this-machine-knows-it"
USERNAME, KEY = "reader", "0123456789abcdef-legacy-key"
SIGNATURE = "signed-address-that-must-not-be-shown"
ENVIRONMENT: Mapping[str, str] = {"KAGGLE_API_ENVIRONMENT": "TEST", "NO_PROXY": "localhost,127.0.0.1"}


@dataclass(frozen=True)
class Planted:
    """What goes wrong for one dataset. The defaults are a public dataset that is served well."""

    private: bool = False
    """401 without credentials, or with others than TOKEN or USERNAME and KEY."""
    status: int | None = None
    """The API answers this instead, such as 401, 403, 404 or 503, ``status_times`` times."""
    status_times: int = 1_000_000
    garbage: bool = False
    """The API answers 200 and the page of some proxy."""
    stalls: bool = False
    """The API accepts the request and says nothing for ten seconds."""
    cuts: int = 0
    """So many bodies break off half-way through what is left."""
    wrong_checksum: bool = False
    without_checksum: bool = False
    ranges: bool = True
    """The storage can resume."""
    rest_status: int | None = None
    """The storage answers this to a range request, ``rest_times`` times."""
    rest_times: int = 1_000_000
    rest_short: bool = False
    """The storage's rest lacks its last bytes, and its own length says nothing of it."""


@dataclass(frozen=True)
class Seen:
    """One request that came in."""

    at: str
    """``GetDataset``, ``DownloadDataset`` or ``storage``."""
    authorization: str | None
    range: str | None
    user_agent: str


@dataclass
class KaggleServer:
    archives: dict[tuple[str, int], bytes] = field(default_factory=dict)
    planted: dict[str, Planted] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    """Bytes of archives that were sent."""
    storage_port: int = 0

    def publish(self, handle: str, versions: Mapping[int, bytes]) -> None:
        self.archives |= {(handle, version): archive for version, archive in versions.items()}

    def plant(self, handle: str, **faults: object) -> None:
        self.planted[handle] = replace(self.faults(handle), **faults)  # type: ignore[arg-type]

    def faults(self, handle: str) -> Planted:
        return self.planted.get(handle, Planted())

    def newest(self, handle: str) -> int | None:
        return max((version for name, version in self.archives if name == handle), default=None)

    def spend(self, handle: str, name: str) -> bool:
        """Use up one of a counted fault; False when none is left."""
        left = getattr(self.faults(handle), name)
        if left > 0:
            self.plant(handle, **{name: left - 1})
        return left > 0

    def requests(self, at: str) -> list[Seen]:
        return [request for request in self.seen if request.at == at]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kaggle: KaggleServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def note(self, at: str) -> None:
        header = self.headers.get
        self.kaggle.seen.append(Seen(at, header("Authorization"), header("Range"), header("User-Agent", "")))

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Api(_Handler):
    def do_POST(self) -> None:
        call = self.path.rsplit("/", 1)[-1]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        handle = f"{body.get('ownerSlug')}/{body.get('datasetSlug')}"
        self.note(call)
        faults = self.kaggle.faults(handle)
        if not self.path.startswith("/api/v1/datasets.DatasetApiService/"):
            return self.refuse(404)
        if faults.status is not None and self.kaggle.spend(handle, "status_times"):
            return self.refuse(faults.status)
        if faults.private and self.headers.get("Authorization") not in _accepted():
            return self.refuse(401)
        if faults.stalls:
            time.sleep(10)
        if faults.garbage:
            return self.answer(200, b"<html>Please sign in to the hospital's network</html>", Content_Type="text/html")
        if call == "GetDataset":
            return self.dataset(handle)
        return self.redirect(handle, body.get("datasetVersionNumber") or self.kaggle.newest(handle))

    def dataset(self, handle: str) -> None:
        newest = self.kaggle.newest(handle)
        if newest is None:
            return self.refuse(404)
        facts = {"id": 1, "ref": handle, "title": handle, "currentVersionNumber": newest}
        self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")

    def redirect(self, handle: str, version: int) -> None:
        if (handle, version) not in self.kaggle.archives:
            return self.refuse(404)
        where = f"http://localhost:{self.kaggle.storage_port}/{handle}/{version}.zip?X-Goog-Signature={SIGNATURE}"
        self.answer(302, b"", Location=where)

    def refuse(self, status: int) -> None:
        body = json.dumps({"code": status, "message": f"refused, {self.headers.get('Authorization')}"}).encode()
        self.answer(status, body, Content_Type="application/json")


class _Storage(_Handler):
    def do_GET(self) -> None:
        self.note("storage")
        address = urlsplit(self.path)
        if parse_qs(address.query).get("X-Goog-Signature") != [SIGNATURE]:
            return self.answer(403, b"no signature")
        handle, name = address.path.strip("/").rsplit("/", 1)
        archive = self.kaggle.archives[handle, int(name.removesuffix(".zip"))]
        faults = self.kaggle.faults(handle)
        start = self.start(faults)
        if start and faults.rest_status is not None and self.kaggle.spend(handle, "rest_times"):
            return self.answer(faults.rest_status, b"not now")
        if start >= len(archive):
            return self.answer(416, b"")
        self.send_archive(handle, archive, start, faults)

    def start(self, faults: Planted) -> int:
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").split("-")[0]) if asked and faults.ranges else 0

    def send_archive(self, handle: str, archive: bytes, start: int, faults: Planted) -> None:
        body = archive[start:-10] if start and faults.rest_short else archive[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(archive) - 1}/{len(archive)}")
        if faults.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if not faults.without_checksum:
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={_md5(archive, wrong=faults.wrong_checksum)}")
        self.end_headers()
        if self.kaggle.spend(handle, "cuts"):
            body = body[: len(body) // 2]
            self.close_connection = True
        # Whoever hangs up (a client that wanted the rest only) is no fault of the storage.
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        self.kaggle.sent += len(body)


def _accepted() -> tuple[str, str]:
    return f"Bearer {TOKEN}", f"Basic {base64.b64encode(f'{USERNAME}:{KEY}'.encode()).decode()}"


def _md5(archive: bytes, *, wrong: bool) -> str:
    return base64.b64encode(hashlib.md5(b"other" if wrong else archive).digest()).decode()


@contextmanager
def serving() -> Iterator[KaggleServer]:
    """A server on port 7777 while the block runs."""
    kaggle = KaggleServer()
    with _alone(), _running(_Storage, 0, kaggle) as storage_port:
        kaggle.storage_port = storage_port
        with _running(_Api, PORT, kaggle):
            yield kaggle


@contextmanager
def _running(handler: type[_Handler], port: int, kaggle: KaggleServer) -> Iterator[int]:
    bound = type(handler.__name__, (handler,), {"kaggle": kaggle})
    server = ThreadingHTTPServer(("127.0.0.1", port), bound)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that goes away is what tests ask for
    server.block_on_close = False  # a stalling request must not hold up the end of a test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


@contextmanager
def silent() -> Iterator[None]:
    """Port 7777 with nothing behind it while the block runs: a machine that is offline."""
    with _alone():
        yield


@contextmanager
def _alone() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / f"kaggle-{PORT}.lock").open("w") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"port {PORT} is held by another test for {LOCK_SECONDS:g} s") from None
                time.sleep(0.05)
        yield

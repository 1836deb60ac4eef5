"""The door of the service: an ASGI middleware that lets nothing but pixels, and a report, through to ``/predict``.

It bounds size, time and number of requests, reads an upload into memory (never to disk) and decodes it. What
cannot become pixels is answered here, with a 4xx, one line and a hint. Nothing of an upload is logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.to_thread
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from medflow.budget import Budget
from medflow.errors import ImageError, ServingError
from medflow.graph import cores
from medflow.image_memory import bytes_to_decode
from medflow.preprocess import Fitted, to_fitted
from medflow.records import PixelSpec
from medflow.text import MAX_CHARACTERS, is_missing

PREDICT, READY = "/predict", "/readyz"
#: Where in the ASGI scope a request's ``Asked`` lies: in a list of one, as BentoML batches lists.
ASKED = "medflow.asked"

MAX_BODY_BYTES = 32 * 2**20
MAX_PIXELS = 100_000_000
#: Requests inside at once, and the sum of their bodies; more are answered 503.
MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT_BYTES = 8 * MAX_BODY_BYTES
#: How much of the memory for images holds uploads that wait, within these bounds; the rest is for decoding.
UPLOADS = 0.2
UPLOAD_SECONDS = 30.0
#: How much of a body that is too large is read and thrown away, so that the client lives to see the 413.
DRAIN_BYTES = 16 * MAX_BODY_BYTES
RETRY_AFTER_SECONDS = 1
#: Names a file; while it is there, the service is being taken away, and no connection is kept for another request.
LEAVING_VARIABLE = "MEDFLOW_LEAVING"
#: Bytes of memory that uploads and the decoding of images may take together.
IMAGE_BYTES_VARIABLE = "MEDFLOW_IMAGE_BYTES"
#: Without it, for each core: the largest radiograph in a plain format.
IMAGE_BYTES = 640 * 2**20
CURL = "curl -F image=@FILE http://HOST:PORT/predict"
CURL_TEXT = "curl -F image=@FILE -F 'text=<REPORT.txt' http://HOST:PORT/predict"

log = logging.getLogger("bentoml.medflow")
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(ServingError):
    """A request that is answered with ``status`` (HTTP)."""

    def __init__(self, status: int, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if self.status == 503 else {}
        return JSONResponse({"error": self.message, "hint": self.hint}, self.status, headers)


@dataclass(frozen=True)
class Upload:
    """What a client sent."""

    image: bytes
    report: str | None
    """The field ``text``; None where it is absent or blank."""


@dataclass(frozen=True)
class Asked:
    """One question to the model."""

    image: Fitted
    report: str | None


class Guarded(Protocol):
    """What the door must know of the model behind it."""

    @property
    def refusal(self) -> Refused | None:
        """Why nothing can be answered now, or None."""
        ...

    @property
    def pixels(self) -> PixelSpec: ...

    @property
    def reads_reports(self) -> bool: ...


class Door:
    """ASGI middleware around BentoML's application."""

    def __init__(self, app: App, model: Guarded) -> None:
        self.app = app
        self.model = model
        self.requests = 0
        self.bytes = 0
        memory = int(os.environ.get(IMAGE_BYTES_VARIABLE, cores() * IMAGE_BYTES))
        self.max_bytes = int(min(max(UPLOADS * memory, MAX_BODY_BYTES), MAX_IN_FLIGHT_BYTES))
        self.budget = Budget(memory - self.max_bytes)
        self._decoders = anyio.CapacityLimiter(cores())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.model.refusal
        if scope["type"] == "http" and _leaving():
            send = _parting(send)
        if scope["type"] == "http" and scope["path"] == PREDICT:
            await self._predict(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == READY and refusal is not None:
            await refusal.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 499  # nginx's number for a client that left
        try:
            with self._place(scope):
                upload = await self._upload(scope, receive)
                scope[ASKED] = [Asked(await self._decoded(upload.image), upload.report)]
                status = await self._answered(scope, receive, send)
        except Refused as refusal:
            status = refusal.status
            await refusal.response()(scope, receive, send)
        except ClientDisconnect:  # BentoML's timeout waits for an answer, even one that nobody reads
            await Refused(400, "the upload broke off", hint=CURL).response()(scope, receive, send)
        log.info("predict %d %.1f ms", status, (time.perf_counter() - start) * 1000)

    @contextmanager
    def _place(self, scope: Scope) -> Iterator[None]:
        """A place among the requests in flight. Raises Refused."""
        if self.model.refusal is not None:
            raise self.model.refusal
        if scope["method"] != "POST":
            raise Refused(405, f"{scope['method']} is not answered here", hint=CURL)
        size = _reserved(Headers(scope=scope))
        if self.requests >= MAX_IN_FLIGHT or self.bytes + size > self.max_bytes:
            raise _busy()
        self.requests, self.bytes = self.requests + 1, self.bytes + size
        try:
            yield
        finally:
            self.requests, self.bytes = self.requests - 1, self.bytes - size

    async def _upload(self, scope: Scope, receive: Receive) -> Upload:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                upload = await read_upload(Headers(scope=scope), receive)
        except TimeoutError:
            message = f"the upload took more than {UPLOAD_SECONDS:g} s"
            raise Refused(408, message, hint="send a smaller image, or over a faster line") from None
        if upload.report is not None and not self.model.reads_reports:
            raise Refused(422, "there is a report in the field `text`, and this model reads none", hint=CURL)
        return upload

    async def _decoded(self, data: bytes) -> Fitted:
        spec = self.model.pixels
        try:
            needed = await anyio.to_thread.run_sync(_needed, data, limiter=self._decoders)
            if needed > self.budget.total:
                raise _too_much(needed, self.budget.total)
            async with self.budget.taken(needed):
                return await anyio.to_thread.run_sync(_decode, data, spec, limiter=self._decoders)
        except ImageError as error:
            raise Refused(422, error.message, hint=error.hint) from error

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Hand over to BentoML and give the status. Raises Refused instead of BentoML's own, wordless 503."""
        status = 0

        async def relay(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            if status != 503:
                await send(message)

        await self.app(scope, receive, relay)
        if status == 503:
            raise _busy()
        return status


def _leaving() -> bool:
    path = os.environ.get(LEAVING_VARIABLE)
    return path is not None and os.path.exists(path)


def _parting(send: Send) -> Send:
    """Say with the answer that this was the connection's last one; the client's next goes to another pod."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        await send(message)

    return last


async def read_upload(headers: Headers, receive: Receive) -> Upload:
    """The file in the multipart field ``image`` and the string in ``text``, where there is one.

    Reads at most MAX_BODY_BYTES of body. Raises Refused.
    """
    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "the request is not multipart/form-data", hint=CURL)
    if _declared(headers) > MAX_BODY_BYTES:
        await _drain(receive)
        raise _too_large()
    try:
        parser = _InMemory(headers, _chunks(receive), max_files=1, max_fields=8, max_part_size=MAX_BODY_BYTES)
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        raise Refused(400, "the multipart body cannot be read, or holds more than one file", hint=CURL) from error
    try:
        part, text = form.get("image"), form.get("text")
        data = await part.read() if isinstance(part, UploadFile) else b""
    finally:
        await form.close()
    if not data:
        raise Refused(400, "there is no file in the field `image`, or it is empty", hint=CURL)
    return Upload(image=data, report=_report(text))


def _report(text: object) -> str | None:
    """The report in a field as the form gave it. Raises Refused."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise Refused(422, "the field `text` holds a file, expected a string", hint=CURL_TEXT)
    if len(text) > MAX_CHARACTERS:
        message = f"the report has {len(text):,} characters, more than {MAX_CHARACTERS:,}"
        raise Refused(413, message, hint="send findings and impression alone")
    return None if is_missing(text) else text


class _InMemory(MultiPartParser):
    spool_max_size = MAX_BODY_BYTES + 1  # an upload may show a patient: it never touches the disk


async def _chunks(receive: Receive) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises Refused once it is too large, ClientDisconnect where it breaks off."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            await _drain(receive)
            raise _too_large()
        yield message.get("body", b"")


async def _drain(receive: Receive) -> None:
    size, more = 0, True
    while more and size < DRAIN_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)


def _declared(headers: Headers) -> int:
    """Content-Length, 0 where it is absent (a chunked body is counted as it arrives)."""
    value = headers.get("content-length", "0")
    return int(value) if value.isascii() and value.isdigit() else 0


def _reserved(headers: Headers) -> int:
    """Bytes that a body may take; one that does not say how long it is, as many as any may."""
    return min(_declared(headers), MAX_BODY_BYTES) if "content-length" in headers else MAX_BODY_BYTES


def _needed(data: bytes) -> int:
    return bytes_to_decode(data, max_pixels=MAX_PIXELS)


def _decode(data: bytes, spec: PixelSpec) -> Fitted:
    return to_fitted(data, spec, max_pixels=MAX_PIXELS)


def _too_large() -> Refused:
    limit = f"{MAX_BODY_BYTES // 2**20} MiB"
    return Refused(413, f"the request is larger than {limit}", hint=f"send one image of less than {limit}")


def _too_much(needed: int, there: int) -> Refused:
    message = f"decoding this image may take {_mib(needed)} of memory, and the service has {_mib(there)} for it"
    return Refused(413, message, hint="send it smaller, or as PNG or baseline JPEG; or serve with more memory")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _busy() -> Refused:
    return Refused(503, "the service is busy", hint="try again after the seconds that Retry-After gives")

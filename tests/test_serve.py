"""The service, over HTTP from a real Bento: right answers, and a 4xx with a hint for whatever else it is sent."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import dicomfiles
import handmade
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medflow import door
from medflow.door import MAX_BODY_BYTES, MAX_IN_FLIGHT, PREDICT, Door
from medflow.package import package
from medflow.records import PixelSpec
from medflow.server import Server, start_server

SECRET = "Jane-Doe-1970"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("serve")
    bundle = handmade.bundle(work / "bundle")
    made = package(bundle, handmade.evaluation(bundle), work=work / "work")
    with start_server(made, home=work / "home", log=work / "serve.log") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def post(client: httpx.Client, data: bytes, name: str = f"{SECRET}.png") -> httpx.Response:
    return client.post(PREDICT, files={"image": (name, data)})


def refused(response: httpx.Response, status: int) -> str:
    """Asserts a one-line JSON error with a hint; gives the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "hint"}
    assert body["error"]
    assert body["hint"]
    assert "\n" not in response.text
    return body["error"]


@pytest.fixture(autouse=True)
def _lives_on(client: httpx.Client) -> Iterator[None]:
    yield
    assert post(client, handmade.image_file(200)).json()["decision"] == "bright"


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "RLE", "JPEG-LS", "JPEG 2000", "deflated"])
def test_a_dicom_file_is_an_image_like_any_other(client: httpx.Client, kind: str) -> None:
    gray = np.full((40, 40), 40_000, dtype=np.uint16)
    window = {"WindowCenter": "40000", "WindowWidth": "1000", "VOILUTFunction": "LINEAR_EXACT"}
    data = dicomfiles.file(dicomfiles.dataset(gray, **window))
    data = data if kind == "plain" else dicomfiles.transcoded(data, dicomfiles.LOSSLESS[kind])
    answer = post(client, data, name="scan.dcm").json()
    # The middle of the window is half gray: 128 of 255.
    assert answer["probabilities"]["bright"] == pytest.approx(0.5, abs=0.01)
    refused(post(client, data[:300], name="scan.dcm"), 422)


def test_a_dicom_upload_is_not_quoted(server: Server, client: httpx.Client) -> None:
    broken = dicomfiles.dataset(np.zeros((8, 8), dtype=np.uint8), Rows=9, **dicomfiles.IDENTIFYING)
    response = post(client, dicomfiles.file(broken), name="scan.dcm")
    assert "cannot be decoded" in refused(response, 422)
    assert dicomfiles.CANARY not in response.text + server.log.read_text()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_predict(client: httpx.Client, kind: str) -> None:
    answer = post(client, handmade.image_file(120, kind=kind)).json()
    assert answer["head"] == "diagnosis"
    assert answer["classes"] == ["dark", "bright"]
    # (128 - 120) / 8 = 1 logit to each side, temperature 2: softmax([0.5, -0.5])
    assert answer["probabilities"]["dark"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.01)
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
    assert answer["decision"] == "dark"
    assert answer["model"]["name"] == "handmade/threshold"
    assert answer["model"]["variant"] == "onnx"


def test_the_mask_is_a_png_of_the_image_that_was_sent(client: httpx.Client) -> None:
    image = np.zeros((60, 130), dtype=np.uint8)
    image[:, 65:] = 255
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    mask = post(client, stream.getvalue()).json()["mask"]
    assert (mask["label"], mask["width"], mask["height"], mask["threshold"]) == ("lung", 130, 60, 0.5)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["png"]))))
    assert found.shape == (60, 130)
    assert (found[:, :61] == 0).all()
    assert (found[:, 69:] == 255).all()
    assert mask["fraction"] == pytest.approx((found > 0).mean())


def test_images_of_many_sizes_get_masks_of_their_own_size(client: httpx.Client) -> None:
    """They are scored together in the model's frame, so a mix-up of sizes would show here."""
    sizes = [(20 + 7 * number, 90 - 3 * number) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda size: post(client, handmade.image_file(200, size=size)).json(), sizes))
    for size, answer in zip(sizes, answers, strict=True):
        found = Image.open(io.BytesIO(base64.b64decode(answer["mask"]["png"])))
        assert found.size == (answer["mask"]["width"], answer["mask"]["height"]) == size
        assert np.asarray(found).min() == 255


def test_info_health_and_metrics(client: httpx.Client) -> None:
    info = client.get("/model/info").json()
    assert info["package"]["tag"] == f"handmade:{info['version']}"
    assert info["package"]["digest"].startswith(info["version"])
    assert info["card"]["preprocess"]["pixels"]["height"] == 32
    assert info["digest"] == post(client, handmade.image_file(1)).json()["model"]["digest"]
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    metrics = client.get("/metrics").text
    assert 'endpoint="/predict"' in metrics
    assert "adaptive_batch_size" in metrics


def test_every_caller_gets_their_own_answer(client: httpx.Client) -> None:
    """Requests are scored together, so a mix-up of rows would show here."""
    grays = [int(gray) for gray in np.random.default_rng(0).integers(0, 256, 120)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda gray: post(client, handmade.image_file(gray)), grays))
    assert {answer.status_code for answer in answers} == {200}
    for gray, answer in zip(grays, answers, strict=True):
        expected = 1 / (1 + np.exp(-(gray - 128) / 8))
        assert answer.json()["probabilities"]["bright"] == pytest.approx(expected, abs=1e-5)


# -- hostile requests ----------------------------------------------------------------------------


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _png_chunk(b"IEND", b"")


HUGE = 300 * 2**20
BROKEN = {
    "text": b"this is no image",
    "cut": handmade.image_file(9)[:50],
    "cut jpeg": handmade.image_file(9, kind="JPEG", size=(400, 400))[:-400],
    "html": b"<html></html>" * 50,
    "zeros": bytes(1000),
    "signature alone": b"\x89PNG\r\n\x1a\n",
    "bomb by its header": _png(60_000, 60_000, _png_chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "no width": _png(0, 10, _png_chunk(b"IDAT", zlib.compress(bytes(10)))),
    "bomb in its text": _png(
        8, 8, _png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(HUGE), 9)), _png_chunk(b"IDAT", b"x")
    ),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_image_is_refused(client: httpx.Client, data: bytes) -> None:
    refused(post(client, data), 422)


def test_a_request_without_an_image_is_refused(client: httpx.Client) -> None:
    refused(post(client, b""), 400)
    refused(client.post(PREDICT), 415)
    refused(client.post(PREDICT, files={"picture": ("a.png", handmade.image_file(9))}), 400)
    refused(client.post(PREDICT, json={"image": "a.png"}), 415)
    refused(client.post(PREDICT, content=handmade.image_file(9), headers={"content-type": "image/png"}), 415)
    refused(client.get(PREDICT), 405)
    text = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--b--\r\n'
    refused(client.post(PREDICT, content=text, headers={"content-type": "multipart/form-data; boundary=b"}), 400)


def test_more_than_one_image_is_refused(client: httpx.Client) -> None:
    files = [("image", ("a.png", handmade.image_file(9))), ("image", ("b.png", handmade.image_file(9)))]
    assert "more than one" in refused(client.post(PREDICT, files=files), 400)


def test_broken_multipart_is_refused(client: httpx.Client) -> None:
    body = b"--x\r\nContent-Disposition: form-data; name"
    for rest in ("", "; boundary=x", "; boundary=x; charset=?"):
        refused(client.post(PREDICT, content=body, headers={"content-type": f"multipart/form-data{rest}"}), 400)


def test_a_body_that_is_too_large_is_refused(client: httpx.Client) -> None:
    big = bytes(MAX_BODY_BYTES + 1)
    assert "larger than 32 MiB" in refused(post(client, big), 413)

    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield bytes(2**20)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert "larger than 32 MiB" in refused(client.post(PREDICT, content=chunks(), headers=headers), 413)


def test_a_declared_size_is_refused_before_the_body_is_there(server: Server) -> None:
    """A terabyte is promised and a few bytes are sent: the answer comes once the client stops sending."""
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with _connected(server) as stream:
        stream.sendall(f"{head}Content-Length: {2**40}\r\n\r\n".encode() + b"--b")
        stream.shutdown(socket.SHUT_WR)
        stream.settimeout(20)
        answer = stream.recv(4096)
    assert answer == b"" or b" 413 " in answer


def test_a_client_that_leaves_half_way_does_no_harm(server: Server) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for _ in range(5):
        with _connected(server) as stream:
            stream.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode() + b"--b\r\nContent-Dis")


def test_a_client_that_left_does_not_hold_up_the_end(server: Server, tmp_path: Path) -> None:
    """BentoML's timeout waits for an answer; where none was sent to a client that left, a stop took a minute."""
    bento = next((server.log.parent / "home").iterdir())
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with start_server(bento, log=tmp_path / "serve.log") as other:
        with _connected(other) as stream:
            stream.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode() + b"--b\r\nContent-Dis")
        while "predict 499" not in (tmp_path / "serve.log").read_text():
            time.sleep(0.05)
        other.process.terminate()
        other.process.wait(8)


def test_paths_that_are_not_there(client: httpx.Client) -> None:
    refused(client.get("/nowhere"), 404)
    refused(client.post(f"/predict/{SECRET}"), 404)
    assert SECRET not in client.get("/metrics").text


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), whole=st.booleans())
def test_no_bytes_cause_a_server_error(server: Server, data: bytes, whole: bool) -> None:
    body = data
    if whole:
        body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--b--\r\n"
    response = httpx.post(
        server.url + PREDICT, content=body, headers={"content-type": "multipart/form-data; boundary=b"}, timeout=60
    )
    refused(response, response.status_code)
    assert 400 <= response.status_code < 500


def test_nothing_of_an_upload_is_logged(server: Server, client: httpx.Client) -> None:
    post(client, handmade.image_file(9))
    post(client, f"not an image of {SECRET}".encode())
    client.get(f"/{SECRET}")
    log = server.log.read_text()
    assert "predict 200" in log
    assert "predict 422" in log
    assert SECRET not in log
    assert "Traceback" not in log


def _connected(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


# -- the door by itself --------------------------------------------------------------------------


class _Open:
    """A model that is ready."""

    refusal = None
    pixels = PixelSpec(height=32, width=32, channels=1)
    reads_reports = False


def ask(entrance: Door, body: bytes, *, pause: float = 0.0) -> tuple[int, dict[str, str], dict[str, str]]:
    """One request through a door as ASGI: status, headers, JSON."""
    return asyncio.run(asked(entrance, body, pause=pause))


async def asked(
    entrance: Door, body: bytes, *, pause: float = 0.0, length: bool = True
) -> tuple[int, dict[str, str], dict[str, str]]:
    sent: list[dict[str, object]] = []
    kind = b"multipart/form-data; boundary=b"
    headers = [(b"content-type", kind)]
    if length:
        headers.append((b"content-length", str(len(body)).encode()))

    async def receive() -> dict[str, object]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": headers}
    await entrance(scope, receive, send)
    start, *rest = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, json.loads(b"".join(part["body"] for part in rest))


def upload(gray: int) -> bytes:
    return _form(handmade.image_file(gray))


def _form(image: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + image + b"\r\n--b--\r\n"


async def _full(scope: object, receive: object, send: object) -> None:
    """Answers as BentoML does when its queue would outlast max_latency."""
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"an unexpected error"})


def test_a_full_house_is_told_when_to_come_back() -> None:
    entrance = Door(_full, _Open())
    entrance.requests = MAX_IN_FLIGHT
    status, headers, body = ask(entrance, upload(9))
    assert (status, headers["retry-after"]) == (503, "1")
    assert "busy" in body["error"]
    assert entrance.requests == MAX_IN_FLIGHT


def test_a_full_queue_is_told_the_same_and_leaves_no_place_taken() -> None:
    entrance = Door(_full, _Open())
    status, headers, body = ask(entrance, upload(9))
    assert (status, headers["retry-after"]) == (503, "1")
    assert "busy" in body["error"]
    assert (entrance.requests, entrance.bytes) == (0, 0)


def test_an_upload_that_crawls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "UPLOAD_SECONDS", 0.05)
    status, _, body = ask(Door(_full, _Open()), upload(9), pause=5)
    assert status == 408
    assert "more than 0.05 s" in body["error"]


# -- leaving -------------------------------------------------------------------------------------


async def _answering(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"{}"})


def test_while_it_leaves_no_connection_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entrance = Door(_answering, _Open())
    monkeypatch.setenv(door.LEAVING_VARIABLE, str(tmp_path / "leaving"))
    assert ask(entrance, upload(9))[1] == {"a": "b"}
    (tmp_path / "leaving").touch()
    assert ask(entrance, upload(9))[1] == {"a": "b", "connection": "close"}
    assert ask(Door(_full, _Open()), upload(9))[1]["connection"] == "close"


# -- memory --------------------------------------------------------------------------------------


def door_with(monkeypatch: pytest.MonkeyPatch, mebibytes: int) -> Door:
    monkeypatch.setenv(door.IMAGE_BYTES_VARIABLE, str(mebibytes * 2**20))
    return Door(_answering, _Open())


def test_what_would_take_more_memory_than_there_is_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    entrance = door_with(monkeypatch, 96)
    status, _, body = ask(entrance, _form(_blank(9000, 9000)))
    assert status == 413
    assert "may take 406 MiB of memory, and the service has 64 MiB" in body["error"]
    assert ask(entrance, _form(_blank(3000, 3000)))[0] == 200
    assert (entrance.requests, entrance.bytes, entrance.budget.used) == (0, 0, 0)


def test_uploads_wait_for_memory_that_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    entrance = door_with(monkeypatch, 96)
    at_once, most = 0, 0
    decode = door._decode

    def watched(data: bytes, spec: PixelSpec) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return decode(data, spec)

    monkeypatch.setattr(door, "_decode", watched)
    image = _form(_blank(2600, 2600))  # 34 of 64 MiB

    async def together() -> list[int]:
        return [status for status, *_ in await asyncio.gather(*(asked(entrance, image) for _ in range(4)))]

    assert asyncio.run(together()) == [200] * 4
    assert most == 1


def test_a_body_of_unknown_length_takes_the_place_of_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    entrance = door_with(monkeypatch, 96)

    async def together() -> list[int]:
        waiting = [asked(entrance, upload(9), pause=0.05, length=False) for _ in range(3)]
        return [status for status, *_ in await asyncio.gather(*waiting)]

    assert sorted(asyncio.run(together())) == [200, 503, 503]


def _blank(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()

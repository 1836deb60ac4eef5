"""A real S3 server on loopback: versitygw where the machine has it, moto's server elsewhere."""

from __future__ import annotations

import lzma
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

ROOT = Path(__file__).resolve().parents[1]
GATEWAY = ROOT.parent / "shared" / "cluster" / "bin" / "versitygw.xz"
#: Moto's server lets everybody in.
CHECKS_CREDENTIALS = GATEWAY.exists()
BUCKET = "medflow"
KEY, SECRET, REGION = "test", "test-secret", "us-east-1"
URL_VARIABLE = "TEST_S3_URL"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start a server with an empty bucket; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(_command(folder, port), stdout=log, stderr=log, env=_environment())
    before = os.environ.get(URL_VARIABLE)
    try:
        _make_bucket(url)
        os.environ[URL_VARIABLE] = url
        yield url
    finally:
        os.environ.pop(URL_VARIABLE, None)
        if before is not None:
            os.environ[URL_VARIABLE] = before
        process.terminate()
        process.wait(60)


def client(url: str):
    return boto3.client("s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name=REGION)


def names(prefix: str = "") -> list[str]:
    """Keys in the bucket of the running server."""
    pages = client(os.environ[URL_VARIABLE]).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def has_checkpoint() -> bool:
    return bool(names("checkpoints/"))


def _command(folder: Path, port: int) -> list[str]:
    if not GATEWAY.exists():
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    binary = folder / "versitygw"
    with lzma.open(GATEWAY) as packed, binary.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    binary.chmod(0o700)
    for name in ("data", "meta"):
        (folder / name).mkdir()
    place = ["posix", "--sidecar", str(folder / "meta"), str(folder / "data")]
    return [str(binary), "--port", f"127.0.0.1:{port}", "--region", REGION, *place]


def _environment() -> dict[str, str]:
    return {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}


def _make_bucket(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            client(url).create_bucket(Bucket=BUCKET)
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)

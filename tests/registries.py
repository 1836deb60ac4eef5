"""A real container registry on loopback, open or asking for credentials: Debian's docker-registry."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

PROGRAM = shutil.which("docker-registry")
USER, PASSWORD = "someone", "pass word"
#: bcrypt of PASSWORD.
HTPASSWD = f"{USER}:$2b$04$BtwEC3ZyvT52i2nwdgELbuV98fB4xJdsu/HvTmaSRP1aVB0aXDYEW"
CONFIG = """
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextmanager
def registry(folder: Path, auth: str = "") -> Iterator[str]:
    """Start one with its files below ``folder``; yields host and port."""
    port = _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(CONFIG.format(folder=folder, port=port) + auth)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(PROGRAM), "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/v2/", folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def asks_for_password(folder: Path) -> str:
    """The section by which a registry asks for USER and PASSWORD."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    return f"auth: {{htpasswd: {{realm: here, path: {folder}/htpasswd}}}}\n"


@dataclass
class Tokens:
    """A server that sells tokens for a password, and what it was asked."""

    url: str
    certificate: Path
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    @property
    def section(self) -> str:
        """The section by which a registry asks for these tokens."""
        issuer = f"service: here, issuer: tests, rootcertbundle: {self.certificate}"
        return f"auth: {{token: {{realm: {self.url}, {issuer}}}}}\n"


@contextmanager
def tokens(folder: Path) -> Iterator[Tokens]:
    key, certificate = _certificate(folder)
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]

    class Seller(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            asked = parse_qs(urlsplit(self.path).query)
            sold.asked.append(asked)
            granted = self.headers.get("Authorization") == f"Basic {wanted}"
            token = jwt.encode(_claims(asked), key, algorithm="RS256", headers={"x5c": chain})
            body = json.dumps({"token": token} if granted else {"errors": []}).encode()
            self.send_response(200 if granted else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Seller)
    sold = Tokens(f"http://127.0.0.1:{server.server_port}/token", folder / "tokens.pem")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield sold
    finally:
        server.shutdown()
        server.server_close()


def docker_login(folder: Path, host: str, user: str = USER, password: str = PASSWORD) -> None:
    """What `docker login` leaves in DOCKER_CONFIG."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def _claims(asked: dict[str, list[str]]) -> dict[str, object]:
    now = int(time.time())
    scopes = [scope.split(":") for scope in asked.get("scope", [])]
    access = [{"type": kind, "name": name, "actions": actions.split(",")} for kind, name, actions in scopes]
    return {"iss": "tests", "aud": "here", "sub": USER, "iat": now, "nbf": now - 60, "exp": now + 300, "access": access}


def _certificate(folder: Path) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    folder.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(hours=1),
                                now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tokens.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, made


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, log: Path) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it asks who is there
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the registry did not start: {log.read_text()}")

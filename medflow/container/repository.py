"""One repository of a registry: manifests and blobs, by the OCI distribution specification 1.1.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from medflow.container.login import TIMEOUT, authorization, login_of
from medflow.container.names import DOCKER_HUB, is_loopback
from medflow.errors import ArtifactError, ServingError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

CHUNK = 1 << 20
RETRIES = 3
#: Where the API of Docker Hub is, whose images have another host in their names.
HOSTS = {DOCKER_HUB: "registry-1.docker.io"}
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEXES = ("application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json")
ACCEPTED = ", ".join((DOCKER_MANIFEST, OCI_MANIFEST, *INDEXES))
#: A manifest and an image's configuration are small; what is larger is no such thing.
MAX_DOCUMENT_BYTES = 4 << 20


@dataclass(frozen=True)
class Manifest:
    """A manifest as the registry has it; its digest is that of these very bytes."""

    raw: bytes = field(repr=False)
    kind: str
    """Its media type."""

    @property
    def digest(self) -> str:
        return digest_of_bytes(self.raw)

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.raw)
        return content


class Repository:
    """Every method raises ServingError where the registry does not answer, or refuses."""

    def __init__(self, host: str, path: str) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3 import Retry

        self.host, self.path = host, path
        self._root = f"{'http' if is_loopback(host) else 'https'}://{HOSTS.get(host, host)}"
        self._authorization: str | None = None
        self._session = requests.Session()
        # Not the default, by which an entry of ~/.netrc would take the place of the token.
        self._session.auth = self._sign
        retry = Retry(RETRIES, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False)
        self._session.mount(self._root, HTTPAdapter(max_retries=retry))

    def manifest(self, reference: str) -> Manifest | None:
        """By tag or digest; None where there is none. Raises ArtifactError where it is not what the digest says."""
        response = self._ask("GET", f"manifests/{reference}", headers={"Accept": ACCEPTED}, expected=(200, 404))
        if response.status_code == 404:
            return None
        found = Manifest(response.content, response.headers.get("Content-Type", "").partition(";")[0])
        if reference.startswith("sha256:") and found.digest != reference:
            raise _altered(reference)
        return found

    def put_manifest(self, reference: str, manifest: Manifest) -> None:
        headers = {"Content-Type": manifest.kind}
        self._ask("PUT", f"manifests/{reference}", content=manifest.raw, headers=headers, expected=(201,))

    def has_blob(self, digest: str) -> bool:
        return self._ask("HEAD", f"blobs/{digest}", expected=(200, 404)).status_code == 200

    def document(self, digest: str) -> bytes:
        """A small blob. Raises ArtifactError where it is not what its digest says."""
        parts, size = [], 0
        for part in self.blob(digest):
            size += len(part)
            if size > MAX_DOCUMENT_BYTES:
                raise ArtifactError(f"{digest} of {self} is too large for a configuration", hint="build the image anew")
            parts.append(part)
        return b"".join(parts)

    def blob(self, digest: str) -> Iterator[bytes]:
        """A blob in pieces; after the last it is compared with its digest. Raises ArtifactError."""
        import requests

        found = hashlib.sha256()
        with self._ask("GET", f"blobs/{digest}", stream=True, expected=(200,)) as response:
            try:
                for part in response.iter_content(CHUNK):
                    found.update(part)
                    yield part
            except requests.RequestException as error:
                raise self._silent(error) from error
        if f"sha256:{found.hexdigest()}" != digest:
            raise _altered(digest)

    def push_blob(self, digest: str, content: Path | bytes) -> None:
        """Put a blob there, from a file or from memory."""
        where = self._ask("POST", "blobs/uploads/", expected=(202,)).headers["Location"]
        where = urljoin(f"{self._root}/", where)
        address = f"{where}{'&' if '?' in where else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        self._send("PUT", address, content=content, headers=headers, expected=(201,))

    def mount(self, digest: str, path: str) -> bool:
        """Take a blob over from another repository of this registry. False where the registry does not."""
        asked = {"mount": digest, "from": path}
        response = self._ask("POST", "blobs/uploads/", params=asked, expected=(201, 202))
        return response.status_code == 201

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"

    def _ask(self, method: str, path: str, **words: Any) -> Response:
        return self._send(method, f"{self._root}/v2/{self.path}/{path}", **words)

    def _send(
        self, method: str, address: str, *, expected: tuple[int, ...], content: Path | bytes | None = None, **words: Any
    ) -> Response:
        response = self._once(method, address, content, words)
        challenge = response.headers.get("WWW-Authenticate")
        if response.status_code == 401 and challenge:
            self._authorization = authorization(challenge, login_of(self.host), self.host)
            if self._authorization is not None:
                response = self._once(method, address, content, words)
        if response.status_code in (401, 403):
            raise ServingError(f"{self} refuses {method}: {_reason(response)}", hint=f"docker login {self.host}")
        if response.status_code not in expected:
            raise ServingError(
                f"{self} answered {response.status_code} to {method} {urlsplit(address).path}: {_reason(response)}",
                hint="look into the registry's log, and whether it has room",
            )
        return response

    def _once(self, method: str, address: str, content: Path | bytes | None, words: dict[str, Any]) -> Response:
        import requests

        try:
            if not isinstance(content, Path):
                return self._session.request(method, address, data=content, timeout=TIMEOUT, **words)
            with content.open("rb") as stream:
                return self._session.request(method, address, data=stream, timeout=TIMEOUT, **words)
        except requests.RequestException as error:
            raise self._silent(error) from error

    def _silent(self, error: Exception) -> ServingError:
        return ServingError(
            f"the registry {self.host} does not answer: {type(error).__name__}",
            hint=f"is `registry` of the stack right? curl {self._root}/v2/",
        )

    def _sign(self, request: PreparedRequest) -> PreparedRequest:
        # A registry may have an upload sent elsewhere; its token is its own.
        if self._authorization is not None and (request.url or "").startswith(f"{self._root}/"):
            request.headers["Authorization"] = self._authorization
        return request


def digest_of_bytes(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _reason(response: Response) -> str:
    """The registry's own words, where it has any."""
    try:
        errors = response.json()["errors"]
        return "; ".join(str(error.get("message") or error.get("code")) for error in errors)[:200]
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.reason or "no reason given"


def _altered(digest: str) -> ArtifactError:
    return ArtifactError(f"the registry's {digest} has another content than its digest says", hint="push it again")

"""Kaggle through its own client: credentials, version numbers, and a download that survives cuts.

What is kagglehub's and kagglesdk's: where credentials are looked for, the address, the requests and
answers of the API, the redirect to storage, the checksum header, the layout on disk. What is done here,
and why ``kagglehub.dataset_download`` (1.0.2, read and tried) is not called as a whole:

- it unpacks with ``ZipFile.extractall``, which bounds neither size nor number; ``medflow.archive`` does;
- its API calls have no timeout at all, and nothing is tried twice;
- on resuming it appends whatever it is answered, a 503 page too, finds a wrong checksum and throws
  everything away; here a rest must be the 206 that was asked for;
- it logs to standard output, which belongs to ``--json``, and in its TEST environment it prints the
  Authorization header and reads whole archives into memory.

No credentials is no error by itself: Kaggle gives public datasets to anybody unless they ask for consent.
So the call is made without, and only a refusal becomes CredentialsError, before any byte of data is fetched.

No message carries a token, a key, an answer's text or a signed address: exceptions of the client are
replaced (``from None``), never quoted.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import requests
from kagglehub.config import KaggleApiCredentials, get_kaggle_credentials
from kagglehub.handle import DatasetHandle, parse_dataset_handle
from kagglehub.integrity import get_md5_checksum_from_response
from kagglesdk.datasets.services.dataset_api_service import DatasetApiClient
from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest, ApiGetDatasetRequest
from kagglesdk.kaggle_env import get_access_token_from_env, get_endpoint, get_env
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.adapters import HTTPAdapter

from medflow.errors import ConfigError, CredentialsError, DownloadError, SourceError
from medflow.progress import say, track

Answer = TypeVar("Answer")
MIB = 1024 * 1024
BLOCK = 64 * 1024
NOT_NOW = (408, 425, 429, 500, 502, 503, 504)

WAYS = (
    "set KAGGLE_API_TOKEN (made at https://www.kaggle.com/settings), or KAGGLE_USERNAME and KAGGLE_KEY, "
    "or put the token into ~/.kaggle/access_token, or kaggle.json into ~/.kaggle"
)
WITHOUT_KAGGLE = "or pass the images with `--source DIR|ZIP`"


@dataclass(frozen=True)
class Patience:
    """How long Kaggle is waited for. Every wait has an end."""

    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    """Between two bytes."""
    attempts: int = 5
    """In a row without a mebibyte of progress, before giving up."""
    pause_seconds: float = 1.0
    """Before the second attempt; doubled each time, up to half a minute."""

    def pause(self, failed: int) -> None:
        time.sleep(min(self.pause_seconds * 2 ** (failed - 1), 30.0))


@dataclass(frozen=True)
class Credentials:
    """That there are credentials, and where. Never what they are."""

    where: str


# -- credentials ----------------------------------------------------------------------------------


def credentials() -> Credentials | None:
    """Where the credentials come from that kagglehub would use, in its own order; None for anonymous.

    Raises CredentialsError where something is there that cannot be credentials.
    """
    return None if _secret() is None else Credentials(where=_where())


def _where() -> str:
    _, name = get_access_token_from_env()
    if name == "KAGGLE_API_TOKEN":
        return name
    if name is not None:
        return "~/.kaggle/access_token" if name == "access_token" else name
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return "KAGGLE_USERNAME and KAGGLE_KEY"
    return "kaggle.json in KAGGLE_CONFIG_DIR" if "KAGGLE_CONFIG_DIR" in os.environ else "~/.kaggle/kaggle.json"


def _secret() -> KaggleApiCredentials | None:
    try:
        found = get_kaggle_credentials()
    except (ValueError, TypeError, OSError):
        # Not quoted: the text of some of these errors holds the token itself.
        raise CredentialsError(
            "the Kaggle credentials that were found cannot be read: expected a token in KAGGLE_API_TOKEN or "
            "~/.kaggle/access_token, or a kaggle.json with `username` and `key`",
            hint=WAYS,
        ) from None
    if found is None:
        return None
    # A secret that went through a file or a Kubernetes secret often ends with a newline.
    stripped = [value.strip() if value else value for value in (found.username, found.key, found.api_key)]
    for value in stripped:
        if value is not None and not (value.isascii() and value.isprintable() and value):
            raise CredentialsError(
                f"the Kaggle credentials of {_where()} hold characters that no token or key has", hint=WAYS
            )
    return KaggleApiCredentials(*stripped)


# -- the client -----------------------------------------------------------------------------------


class _TimedAdapter(HTTPAdapter):
    """kagglesdk sends without a timeout; this one is applied to every request of its session."""

    def __init__(self, patience: Patience) -> None:
        self._timeout = (patience.connect_seconds, patience.read_seconds)
        super().__init__()

    def send(self, request, stream=False, timeout=None, **settings):
        return super().send(request, stream=stream, timeout=timeout or self._timeout, **settings)


@contextmanager
def _api(patience: Patience) -> Iterator[DatasetApiClient]:
    """Kaggle's dataset calls, with the credentials that were found, silent and with timeouts."""
    try:
        environment = get_env()
    except Exception:  # noqa: BLE001 - the client raises no narrower one
        raise ConfigError(
            f"KAGGLE_API_ENVIRONMENT is {os.environ.get('KAGGLE_API_ENVIRONMENT')!r}, which Kaggle's client does not know",
            hint="unset it",
        ) from None
    secret = _secret() or KaggleApiCredentials()
    client = KaggleHttpClient(
        env=environment,
        verbose=False,
        username=secret.username,
        password=secret.key,
        api_token=secret.api_key,
        user_agent="medflow kagglehub",
    )
    with client:
        for scheme in ("https://", "http://"):
            client._session.mount(scheme, _TimedAdapter(patience))
        yield DatasetApiClient(client)


def parse(handle: str) -> DatasetHandle:
    """``owner/dataset``. Raises ConfigError otherwise."""
    try:
        parsed = parse_dataset_handle(handle)
    except ValueError:
        parsed = None
    # The two names become folders.
    if parsed is None or parsed.version or any(name in ("", ".", "..") for name in (parsed.owner, parsed.dataset)):
        raise ConfigError(f"{handle!r} is no Kaggle dataset; expected owner/dataset", hint="see the dataset's address")
    return parsed


def current_version(handle: str, patience: Patience = Patience()) -> int:
    """The number of the newest version.

    Raises CredentialsError (401, 403), DownloadError (404, unreachable, or no version in the answer).
    """
    dataset = parse(handle)
    request = ApiGetDatasetRequest()
    request.owner_slug, request.dataset_slug = dataset.owner, dataset.dataset

    def ask() -> int:
        with _api(patience) as api:
            return api.get_dataset(request).current_version_number

    version = _patiently(ask, dataset, patience)
    if not isinstance(version, int) or version < 1:
        raise _nonsense(dataset)
    return version


def _patiently(ask: Callable[[], Answer], dataset: DatasetHandle, patience: Patience) -> Answer:
    """``ask()``, again after what may pass, and its failures in our words."""
    for failed in range(1, patience.attempts + 1):
        try:
            return ask()
        except requests.exceptions.JSONDecodeError:
            raise _nonsense(dataset) from None
        except requests.HTTPError as error:
            if _status(error) not in NOT_NOW or failed == patience.attempts:
                raise _refusal(error, dataset) from None
        except requests.RequestException as error:
            if failed == patience.attempts or not _passes(error):
                raise _unreachable(dataset) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _nonsense(dataset) from None
        patience.pause(failed)
    raise AssertionError("the last attempt returns or raises")


def _passes(error: requests.RequestException) -> bool:
    """What waiting may mend; addresses, proxies and certificates it does not."""
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    settled = (requests.exceptions.SSLError, requests.exceptions.ProxyError)
    return isinstance(error, broken) and not isinstance(error, settled)


# -- download -------------------------------------------------------------------------------------


def download(handle: str, version: int, folder: Path, patience: Patience = Patience()) -> Path:
    """The archive of one version, checked, as ``folder/<version>.archive``; not fetched twice.

    A cut connection is taken up again where it broke, in this call and in the next one: what has come
    lies in ``<version>.<tag>.part``, the tag being that of the archive's checksum, so two archives never mix.

    Raises CredentialsError (401, 403), DownloadError (404, checksum, cut for good, no disk space).
    """
    dataset = parse(handle).with_version(version)
    archive = folder / f"{version}.archive"
    if archive.exists():
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    while True:
        before = _received(folder, version)
        try:
            _download_once(dataset, folder, patience).replace(archive)
            return archive
        except requests.HTTPError as error:
            again = _status(error) in NOT_NOW
            reason: SourceError = _refusal(error, dataset)
        except requests.RequestException as error:
            again = _passes(error)
            reason = _cut(dataset, folder)
        failed = 1 if _received(folder, version) >= before + MIB else failed + 1
        if failed >= patience.attempts or not again:
            raise reason from None
        say(f"{dataset}: the connection broke; taking it up again")
        patience.pause(failed)


def _received(folder: Path, version: int) -> int:
    return sum(part.stat().st_size for part in folder.glob(f"{version}.*.part"))


def _download_once(dataset: DatasetHandle, folder: Path, patience: Patience) -> Path:
    """One request, one body (or its rest), one check. Returns the checked file, still named ``.part``."""
    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = dataset.owner, dataset.dataset
    request.dataset_version_number = dataset.version
    with _api(patience) as api, api.download_dataset(request) as whole:
        wanted = _Wanted.of(whole)
        part = folder / f"{dataset.version}.{wanted.tag}.part"
        for other in set(folder.glob(f"{dataset.version}.*.part")) - {part}:
            other.unlink()  # of an archive that Kaggle has since replaced
        start = part.stat().st_size if part.exists() else 0
        if not wanted.bytes or start != wanted.bytes:
            _refuse_full_disk(wanted.bytes - start, folder)
            with _rest(whole, start, patience) as (body, start):
                _receive(body, part, start, wanted.bytes, f"downloading {dataset} (MiB)")
    _check(part, wanted, dataset)
    return part


@dataclass(frozen=True)
class _Wanted:
    """What the storage says of the archive before its bytes."""

    bytes: int
    """0 where it does not say."""
    md5: str | None
    """Base64, as in the header."""
    tag: str

    @classmethod
    def of(cls, response: requests.Response) -> _Wanted:
        length = response.headers.get("Content-Length", "")
        md5 = get_md5_checksum_from_response(response)
        identity = md5 or response.headers.get("ETag") or length
        tag = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return cls(bytes=int(length) if length.isdecimal() else 0, md5=md5, tag=tag)


@contextmanager
def _rest(whole: requests.Response, start: int, patience: Patience) -> Iterator[tuple[requests.Response, int]]:
    """The body from byte ``start`` on where the storage gives it, else all of it, and where it starts.

    Asked without credentials, as kagglehub does: the storage's address is signed and the storage is not Kaggle.
    """
    if not start or whole.headers.get("Accept-Ranges") != "bytes":
        yield whole, 0
        return
    timeout = (patience.connect_seconds, patience.read_seconds)
    with requests.get(whole.url, headers={"Range": f"bytes={start}-"}, stream=True, timeout=timeout) as rest:
        if rest.status_code in NOT_NOW:
            rest.raise_for_status()
        if rest.status_code == 206 and rest.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            whole.close()
            yield rest, start
        else:
            yield whole, 0


def _receive(body: requests.Response, part: Path, start: int, total: int, what: str) -> None:
    with part.open("ab" if start else "wb") as file:
        for _ in track(_mebibytes(body, file), what=what, total=math.ceil(max(total - start, 0) / MIB)):
            pass


def _mebibytes(body: requests.Response, file: BinaryIO) -> Iterator[int]:
    """Write the body, and yield the bytes written after each mebibyte and at the end.

    The blocks are small, because what has come of a block is lost when the connection breaks.
    """
    unsaid = 0
    for block in body.iter_content(BLOCK):
        unsaid += file.write(block)
        if unsaid >= MIB:
            yield unsaid
            unsaid = 0
    if unsaid:
        yield unsaid


def _check(part: Path, wanted: _Wanted, dataset: DatasetHandle) -> None:
    size = part.stat().st_size
    if wanted.bytes and size != wanted.bytes:
        problem = f"has {size} bytes, {wanted.bytes} were announced"
    elif wanted.md5 and _md5(part) != wanted.md5:
        problem = "does not have the checksum that Kaggle's storage gave for it"
    else:
        return
    part.unlink()
    raise DownloadError(
        f"the archive of {dataset} {problem}; it was removed",
        hint=f"run again to download it anew; where it repeats, a proxy may change what passes, {WITHOUT_KAGGLE}",
    )


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return base64.b64encode(hashlib.file_digest(stream, "md5").digest()).decode()


def _refuse_full_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"the download needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            hint="free some space, or point MEDFLOW_HOME at a larger disk",
        )


# -- failures in our words ------------------------------------------------------------------------


def _status(error: requests.HTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def _refusal(error: requests.HTTPError, dataset: DatasetHandle) -> SourceError:
    status = _status(error)
    address = error.response.url if error.response is not None else ""
    if urlsplit(address).netloc != urlsplit(get_endpoint(get_env())).netloc:
        return DownloadError(f"Kaggle's storage answered {status} for {dataset}", hint="run again: it resumes")
    if status in (401, 403):
        return _denied(status, dataset)
    if status == 404:
        return DownloadError(
            f"Kaggle has no {_named(dataset)} (404)",
            hint=f"check the name and `source.version`; a private dataset is shown to its owner alone: {WAYS}",
        )
    return DownloadError(f"Kaggle answered {status} for {_named(dataset)}", hint=f"run again later, {WITHOUT_KAGGLE}")


def _denied(status: int, dataset: DatasetHandle) -> CredentialsError:
    found = credentials()
    page = DatasetHandle(dataset.owner, dataset.dataset).to_url()
    if found is None:
        return CredentialsError(
            f"Kaggle does not give {_named(dataset)} without credentials ({status}), and none were found",
            hint=f"{WAYS}; {WITHOUT_KAGGLE}",
        )
    if status == 401:
        hint = f"the token may be expired or revoked: {WAYS}"
    else:
        hint = f"open {page} in a browser, signed in, and accept the dataset's terms; or the token may not cover it"
    return CredentialsError(
        f"Kaggle refused {_named(dataset)} ({status}) with the credentials of {found.where}",
        hint=f"{hint}; {WITHOUT_KAGGLE}",
    )


def _unreachable(dataset: DatasetHandle) -> DownloadError:
    return DownloadError(
        f"Kaggle could not be reached for {_named(dataset)}",
        hint="check the network and the proxy, or work without it: `--source DIR|ZIP` takes images that are on disk",
    )


def _cut(dataset: DatasetHandle, folder: Path) -> DownloadError:
    received = _received(folder, dataset.version or 0)
    if not received:
        return _unreachable(dataset)
    return DownloadError(
        f"the download of {_named(dataset)} broke off after {received / 1e6:.1f} MB",
        hint=f"run again: it resumes where it broke off; {WITHOUT_KAGGLE}",
    )


def _nonsense(dataset: DatasetHandle) -> DownloadError:
    return DownloadError(
        f"the answer for {_named(dataset)} is not Kaggle's: expected a dataset with a version number",
        hint=f"a proxy or a sign-in page may stand in between; {WITHOUT_KAGGLE}",
    )


def _named(dataset: DatasetHandle) -> str:
    return f"dataset {dataset.owner}/{dataset.dataset}" + (f", version {dataset.version}" if dataset.version else "")

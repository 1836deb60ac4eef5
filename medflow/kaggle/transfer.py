"""One archive from Kaggle's storage onto this disk, whole and checked, through any number of cuts."""

from __future__ import annotations

import base64
import hashlib
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
from kagglehub.handle import DatasetHandle
from kagglehub.integrity import get_md5_checksum_from_response
from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

from medflow.errors import DownloadError, SourceError
from medflow.kaggle.client import NOT_NOW, PATIENCE, Patience, api, parse, passes
from medflow.kaggle.refusals import WITHOUT_KAGGLE, broken_off, nonsense, refusal, status_of
from medflow.progress import say, track

MIB = 1024 * 1024
BLOCK = 64 * 1024


def download(handle: str, version: int, folder: Path, patience: Patience = PATIENCE) -> Path:
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
    failed, most = 0, _received(folder, version)
    while True:
        try:
            _download_once(dataset, folder, patience).replace(archive)
            return archive
        except requests.exceptions.JSONDecodeError:
            raise nonsense(dataset) from None
        except requests.HTTPError as error:
            again = status_of(error) in NOT_NOW
            reason: SourceError = refusal(error, dataset)
        except requests.RequestException as error:
            again = passes(error)
            reason = broken_off(dataset, _received(folder, version))
        except OSError as error:
            raise DownloadError(
                f"the download of {dataset} cannot be written: {error.strerror}",
                hint="free some space, or point MEDFLOW_HOME at a folder that can be written",
            ) from error
        # Measured against the most there ever was: a storage that cannot resume starts over and over.
        received = _received(folder, version)
        failed = 1 if received >= most + MIB else failed + 1
        most = max(most, received)
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
    with api(patience) as calls, calls.download_dataset(request) as whole:
        if whole.headers.get("Content-Type", "").startswith(("text/html", "application/json")):
            raise nonsense(dataset)
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

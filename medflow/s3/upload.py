"""A local folder or archive into a bucket, under a name that is its content.

A folder becomes ``<digest>/...`` and, written last, the marker ``<digest>.complete``; an archive becomes
``<digest>.zip``. What must keep its own name becomes ``<digest>/<name>``. So the same content is sent once, wherever
it lay; an upload that was cut short goes on with what is missing; and what has a marker never changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medflow.archive import safe_parts
from medflow.errors import ArchiveError, SourceError
from medflow.progress import say, track
from medflow.records import digest_of, file_digest
from medflow.s3 import bucket
from medflow.s3.access import Access, connect, explained, in_threads
from medflow.s3.bucket import ARCHIVES, Place

DIGITS = 32
IN_PARTS_FROM = 32 * 1024 * 1024


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    """Relative to the folder, POSIX."""
    bytes: int
    modified: int
    """Nanoseconds."""
    sha256: str


def upload(source: Path, to: Place, access: Access) -> str:
    """Put a folder or an archive below ``to``; the ``s3://`` source to run with. What is there already is not sent.

    Raises SourceError (nothing to read, a name that no source may have, a file that changed meanwhile) and what the
    store's refusals become.
    """
    source = source.expanduser().absolute()
    if source.is_dir():
        return _upload_folder(connect(access), source, list(_files(source, source)), to.below)
    if source.is_file() and not source.name.lower().endswith(ARCHIVES):
        raise SourceError(f"{source.name} is no archive: expected {', '.join(ARCHIVES)}", hint="check `--source`")
    return upload_file(source, to, access)


def upload_file(source: Path, to: Place, access: Access) -> str:
    """Put one file below ``to``, named by its content, its suffixes kept; the URI of it. Raises as ``upload`` does."""
    return _upload_file(connect(access), source, lambda digest: to.below(f"{digest}{_suffix(source.name)}"))


def upload_named(source: Path, to: Place, access: Access, wanted: Callable[[str], bool] = lambda path: True) -> str:
    """Likewise a file or folder that keeps its name, of a folder the files for whose path ``wanted`` says so."""
    source = source.expanduser().absolute()
    client = connect(access)
    if not source.is_dir():
        return _upload_file(client, source, lambda digest: to.below(digest, source.name))
    files = [(name, path) for name, path in _files(source, source) if wanted(name)]
    return _upload_folder(client, source, files, lambda digest: to.below(digest, source.name))


def _upload_file(client: Any, source: Path, where: Callable[[str], Place]) -> str:
    if not source.is_file():
        raise SourceError(f"{source} does not exist", hint="check the path")
    file = _read(source, source.name)
    place = where(file.sha256[:DIGITS])
    if _there(client, place) == file.bytes:
        say(f"{source.name} is at {place} already")
    else:
        _send(client, place, file)
    return str(place)


def _suffix(name: str) -> str:
    found = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), Path(name).suffix.lower())
    return found if found.isascii() else ""


def _upload_folder(client: Any, source: Path, paths: list[tuple[str, Path]], where: Callable[[str], Place]) -> str:
    if not paths:
        raise SourceError(f"the folder {source} holds no file", hint="check the path")
    reading = track(sorted(paths), what=f"reading {source.name} (files)", total=len(paths))
    files = [_read(path, name) for name, path in reading]
    place = where(digest_of([[file.name, file.bytes, file.sha256] for file in files])[:DIGITS])
    marker = Place(place.bucket, f"{place.prefix}.complete")
    if _there(client, marker) is not None:
        say(f"{source.name} is at {place} already")
        return str(place)
    there = _sizes(client, place)
    missing = [file for file in files if there.get(file.name) != file.bytes]
    in_threads(lambda file: _send(client, place.below(file.name), file), missing, what=f"uploading to {place} (files)")
    _refuse_incomplete(client, place, files)
    facts = {"files": len(files), "bytes": sum(file.bytes for file in files)}
    with explained(str(marker)):
        client.put_object(Bucket=marker.bucket, Key=marker.prefix, Body=json.dumps(facts).encode())
    return str(place)


def _files(folder: Path, root: Path, above: frozenset[Path] = frozenset()) -> Iterator[tuple[str, Path]]:
    """Name and path of every file. Links count as what they lead to, but for a folder inside itself."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, root, above | {real})
        elif path.is_file():
            yield path.relative_to(root).as_posix(), path


def _read(path: Path, name: str) -> _File:
    try:
        safe_parts(name)
        facts = path.stat()
        return _File(path, name, facts.st_size, facts.st_mtime_ns, file_digest(path))
    except ArchiveError as error:
        raise SourceError(f"{name!r} cannot be uploaded: {error.message}", hint="rename it") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error


def _send(client: Any, place: Place, file: _File) -> None:
    """Either way the object appears whole or not at all; boto3 sends large files in parts."""
    with explained(str(place)), file.path.open("rb") as stream:
        if file.bytes < IN_PARTS_FROM:
            client.put_object(Bucket=place.bucket, Key=place.prefix, Body=stream)
        else:
            client.upload_fileobj(stream, place.bucket, place.prefix)
    facts = file.path.stat()
    if (facts.st_size, facts.st_mtime_ns) != (file.bytes, file.modified):
        with explained(str(place)):
            client.delete_object(Bucket=place.bucket, Key=place.prefix)
        raise SourceError(f"{file.path} changed during the upload", hint="run again while nothing is written there")


def _there(client: Any, place: Place) -> int | None:
    """Bytes of an object, None where there is none."""
    from botocore.exceptions import ClientError

    with explained(str(place)):
        try:
            return int(client.head_object(Bucket=place.bucket, Key=place.prefix)["ContentLength"])
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                raise
            return None


def _sizes(client: Any, place: Place) -> dict[str, int]:
    root = f"{place.prefix}/"
    with explained(str(place)):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=root)
        return {entry["Key"].removeprefix(root): entry["Size"] for page in pages for entry in page.get("Contents", ())}


def _refuse_incomplete(client: Any, place: Place, files: list[_File]) -> None:
    found = {item.path: item.bytes for item in bucket.items(client, place)}
    if found != {file.name: file.bytes for file in files}:
        raise SourceError(
            f"{place} does not hold what was sent: {len(found)} objects, {len(files)} files",
            hint="another program may write there; run again",
        )

"""What lies below a prefix. Keys are whatever somebody wrote: none may name a path outside of its folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from medflow.archive import ArchiveLimits, safe_parts
from medflow.errors import ArchiveError, ConfigError, SourceError
from medflow.records import Record
from medflow.s3.access import explained

SCHEME = "s3://"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^\x00-\x1f\x7f]*))?")


@dataclass(frozen=True)
class Place:
    """``s3://bucket/prefix``: a folder, or an archive by its name."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""

    @classmethod
    def of(cls, uri: str) -> Place:
        """Raises ConfigError for what is no ``s3://BUCKET/PREFIX``."""
        match = _URI.fullmatch(uri)
        if match is None:
            # A user name and password, or a signature, may stand in it.
            found = "another form" if "@" in uri or "?" in uri else repr(uri)
            raise ConfigError(
                f"expected s3://BUCKET/PREFIX, found {found}",
                hint="such as s3://images/covid.zip; credentials come from AWS_* variables or the artifact store",
            )
        return cls(match["bucket"], (match["prefix"] or "").strip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def below(self, *names: str) -> Place:
        return Place(self.bucket, "/".join(part for part in (self.prefix, *names) if part))

    @staticmethod
    def is_meant(uri: str) -> bool:
        """Whether a source or path is meant as one of a bucket."""
        return uri.startswith("s3:")

    def is_archive(self) -> bool:
        return self.prefix.lower().endswith(ARCHIVES)


class Item(Record):
    """One object, as the store listed it."""

    key: str
    path: str
    """Relative to the listed prefix: plain names, POSIX."""
    bytes: int
    etag: str
    """Changes when the content does."""


def items(client: Any, place: Place) -> tuple[Item, ...]:
    """Every object below a prefix, sorted by path; objects that only stand for a folder are left out.

    Raises SourceError where there is none, or where a key could leave the folder or claim another's path.
    """
    root = f"{place.prefix}/" if place.prefix else ""
    found: list[Item] = []
    with explained(str(place)):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=root):
            found += [_item(entry, root) for entry in page.get("Contents", ()) if not _is_folder(entry)]
            if len(found) > ArchiveLimits.files:
                raise SourceError(
                    f"{place} holds more than {ArchiveLimits.files:,} objects", hint="name a prefix further down"
                )
    if not found:
        raise SourceError(f"{place} holds no object", hint="check `--source`: the prefix, and the bucket's region")
    found.sort(key=lambda item: item.path)
    _refuse_doubled(found, place)
    return tuple(found)


def item(client: Any, place: Place) -> Item:
    """The one object that ``place`` names."""
    with explained(str(place)):
        head = client.head_object(Bucket=place.bucket, Key=place.prefix)
    name = PurePosixPath(place.prefix).name
    return Item(key=place.prefix, path=name, bytes=head["ContentLength"], etag=head["ETag"])


def digest(found: Iterable[Item]) -> str:
    """sha256 (64 hex) over paths, sizes and ETags; it does not depend on the prefix."""
    lines = [f"{item.path}\0{item.bytes}\0{item.etag}" for item in found]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_folder(entry: Any) -> bool:
    return entry["Key"].endswith("/") and not entry["Size"]


def _item(entry: Any, root: str) -> Item:
    key = entry["Key"]
    relative = key.removeprefix(root)
    try:
        parts = safe_parts(relative)
    except ArchiveError as error:
        raise SourceError(f"the object {key!r} is refused: {error.message}", hint="remove or rename it") from None
    if "/".join(parts) != relative:
        raise SourceError(
            f"the object {key!r} is refused: its key is no plain path", hint="remove it, or rename it without // or /./"
        )
    return Item(key=key, path=relative, bytes=entry["Size"], etag=entry["ETag"])


def _refuse_doubled(found: list[Item], place: Place) -> None:
    folders = {parent.as_posix() for item in found for parent in PurePosixPath(item.path).parents}
    both = next((item.path for item in found if item.path in folders), None)
    if both is not None:
        raise SourceError(
            f"{place}: {both!r} is an object and a folder of others, which no disk can hold", hint="remove one of them"
        )

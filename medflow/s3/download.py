"""From a bucket onto this disk: each file whole or absent, taken up again where a connection broke.

Everything lies in folders named by the source's fingerprint, and every request asks for the very content that was
listed (``If-Match``), so what arrived earlier is never mixed with what the source holds now.

A dataset's listing reads tables, DICOM headers and names; of other images it opens none. So ``listable`` brings
the former and, of each such image, an empty file of its size; ``bring`` then brings the images that are needed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medflow.atomic import write_bytes
from medflow.errors import DownloadError, SourceError
from medflow.progress import say
from medflow.s3 import bucket
from medflow.s3.access import Access, connect, explained, in_threads
from medflow.s3.bucket import Item, Place

MIB = 1024 * 1024
ATTEMPTS = 5
"""In a row without a mebibyte of progress, before giving up."""
_ITEMS = TypeAdapter(tuple[Item, ...])


def fingerprint(place: Place, access: Access) -> str:
    """sha256 (64 hex) over names, sizes and ETags below a prefix, or of the one archive that ``place`` names."""
    if place.is_archive():
        return file_fingerprint(place, access)
    return bucket.digest(bucket.items(connect(access), place))


def file_fingerprint(place: Place, access: Access) -> str:
    """Likewise, of the one object that ``place`` names."""
    return bucket.digest([bucket.item(connect(access), place)])


def listable(place: Place, seen: str, to: Path, access: Access, named_only: Callable[[str], bool]) -> Path:
    """A folder below ``to`` with every file of ``place``; those for whose path ``named_only`` says so hold zeros.

    ``seen`` is the fingerprint of ``resolve``. Raises SourceError where the bucket holds something else by now.
    """
    client = connect(access)
    found = _listed(client, place, seen, to)
    root = to / f"{seen[:16]}-names"
    needed = [item for item in found if not named_only(item.path)]
    _download_all(client, place, needed, root)
    for item in found:
        target = root / item.path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                stream.truncate(item.bytes)
    return root


def bring(place: Place, seen: str, paths: Collection[str], to: Path, access: Access) -> Path:
    """A folder below ``to`` with at least the files ``paths`` of ``place``; paths that it lacks stay absent."""
    return bring_matching(place, seen, frozenset(paths).__contains__, to, access)


def bring_matching(place: Place, seen: str, wanted: Callable[[str], bool], to: Path, access: Access) -> Path:
    """A folder below ``to`` with at least the files of ``place`` for whose path ``wanted`` says so."""
    client = connect(access)
    root = to / seen[:16]
    root.mkdir(parents=True, exist_ok=True)
    _download_all(client, place, [item for item in _listed(client, place, seen, to) if wanted(item.path)], root)
    return root


def bring_file(place: Place, seen: str, to: Path, access: Access) -> Path:
    """The one object that ``place`` names, as a file below ``to``."""
    client = connect(access)
    item = bucket.item(client, place)
    _refuse_changed(bucket.digest([item]), seen, place)
    root = to / f"{seen[:16]}-file"
    _download_all(client, place, [item], root)
    return root / item.path


def _listed(client: Any, place: Place, seen: str, to: Path) -> tuple[Item, ...]:
    """What ``place`` held when its fingerprint was ``seen``, remembered beside the files."""
    kept = to / f"{seen[:16]}.listing.json"
    if kept.exists():
        return _ITEMS.validate_json(kept.read_bytes())
    found = bucket.items(client, place)
    _refuse_changed(bucket.digest(found), seen, place)
    to.mkdir(parents=True, exist_ok=True)
    write_bytes(kept, _ITEMS.dump_json(found))
    return found


def _refuse_changed(now: str, seen: str, place: Place) -> None:
    if now != seen:
        raise SourceError(f"{place} changed after the run began", hint="run again")


# -- files ---------------------------------------------------------------------------------------


def _download_all(client: Any, place: Place, items: Sequence[Item], root: Path) -> None:
    missing = [item for item in items if not (root / item.path).exists()]
    if not missing:
        return
    root.mkdir(parents=True, exist_ok=True)
    _refuse_full_disk(sum(item.bytes for item in missing), root)
    in_threads(
        lambda item: download(client, place, item, root / item.path), missing, what=f"downloading {place} (files)"
    )


def download(client: Any, place: Place, item: Item, target: Path) -> None:
    """One object, checked against its listed size and ETag. Raises SourceError and its kinds."""
    from botocore.exceptions import BotoCoreError

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    failed, most = 0, _size(part)
    while True:
        with explained(f"{place}: {item.path}"):
            try:
                _receive(client, place, item, part)
                break
            except BotoCoreError:
                received = _size(part)
                failed = 1 if received >= most + MIB else failed + 1
                most = max(most, received)
                if failed >= ATTEMPTS:
                    raise
        say(f"{item.path}: the connection broke; taking it up again")
        time.sleep(min(2.0 ** (failed - 1), 30.0))
    if _size(part) != item.bytes:
        part.unlink()
        raise DownloadError(
            f"{place}: {item.path} arrived with another size than its {item.bytes} bytes; it was removed",
            hint="run again to get it anew",
        )
    part.replace(target)


def _receive(client: Any, place: Place, item: Item, part: Path) -> None:
    """Append what is missing; a store that cannot resume starts over."""
    start = _size(part)
    if part.exists() and start == item.bytes:
        return
    resume = {"Range": f"bytes={start}-"} if 0 < start < item.bytes else {}
    answer = client.get_object(Bucket=place.bucket, Key=item.key, IfMatch=item.etag, **resume)
    resumed = bool(resume) and str(answer.get("ContentRange", "")).startswith(f"bytes {start}-")
    with part.open("ab" if resumed else "wb") as stream:
        for block in answer["Body"].iter_chunks(MIB):
            stream.write(block)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refuse_full_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"the download needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            hint="free some space, or point MEDFLOW_HOME at a larger disk",
        )

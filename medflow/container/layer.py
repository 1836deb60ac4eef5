"""A folder as a layer of an image. The same files are the same bytes, on every machine and at any time.

The tar is not compressed: what gzip makes of the same bytes differs between versions of zlib, and weights
hardly shrink.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from medflow.errors import ArtifactError
from medflow.records import file_digest

#: Who runs the serving image.
OWNER = 1000
FILE_MODE, FOLDER_MODE = 0o644, 0o755


@dataclass(frozen=True)
class Layer:
    path: Path
    """The tar."""
    digest: str
    """``sha256:`` and 64 hex, of the tar; there is no other, since it is not compressed."""
    bytes: int


def write_layer(folder: Path, target: Path, *, at: str) -> Layer:
    """Write ``folder`` as a tar to ``target``, to lie at ``/at`` in an image.

    Raises ArtifactError for what is neither file nor folder.
    """
    paths = sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in (folder, *paths):
            _add(archive, path, "/".join((at, *path.relative_to(folder).parts)))
    return Layer(target, f"sha256:{file_digest(target)}", target.stat().st_size)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.uid = member.gid = OWNER
    if path.is_symlink() or not (path.is_dir() or path.is_file()):
        raise ArtifactError(f"{path.name} is neither a file nor a folder", hint="run the step `package` again")
    if path.is_dir():
        member.type, member.mode = tarfile.DIRTYPE, FOLDER_MODE
        archive.addfile(member)
        return
    member.mode, member.size = FILE_MODE, path.stat().st_size
    with path.open("rb") as stream:
        archive.addfile(member, stream)

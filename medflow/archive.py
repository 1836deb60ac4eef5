"""Unpack a zip or tar(.gz) that nobody vouches for.

Two passes. The first looks at every member and refuses the whole archive where one of them is
hostile or the sum is too large, so a refused archive leaves nothing behind. The second writes
regular files into a folder beside the target and renames it at the end, so the target is whole or absent.

Neither ``ZipFile.extractall`` nor ``TarFile.extractall`` is used: the first has no bounds at all,
the second makes links. Only names, sizes and bytes are taken over; no mode, owner, link or device.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from medflow.errors import ArchiveError
from medflow.progress import track

CHUNK = 1024 * 1024
DISK_BLOCK = 4096
GIB = 1024**3

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # RecursionError of chained pax headers; encrypted members slip through nowhere else
    ValueError,
    OverflowError,
    KeyError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GET_AGAIN = "the archive is damaged or was cut short: get it again"


@dataclass(frozen=True)
class ArchiveLimits:
    """What one archive may become. The largest public medical image sets stay well below."""

    total_bytes: int = 500 * 10**9
    """All files together, unpacked."""
    files: int = 2_000_000
    """Files and folders."""
    file_bytes: int = 100 * 10**9
    """The largest single file, unpacked."""
    ratio: float = 200.0
    """Unpacked bytes for each byte of the archive; deflate cannot pass 1032, images rarely pass 3."""
    ratio_from: int = GIB
    """Below this many unpacked bytes the ratio does not matter: blank masks and tables compress well."""
    depth: int = 64
    """Folders inside folders."""


@dataclass(frozen=True)
class _Member:
    """One entry that may be written: ``parts`` are plain names below the target."""

    parts: tuple[str, ...]
    size: int
    is_folder: bool
    entry: zipfile.ZipInfo | tarfile.TarInfo


class _Archive(Protocol):
    def members(self, limits: ArchiveLimits) -> Iterator[_Member]: ...

    def open(self, member: _Member) -> BinaryIO: ...

    def close(self) -> None: ...


def extract(archive: Path, to: Path, limits: ArchiveLimits = ArchiveLimits()) -> None:
    """Unpack ``archive`` into the new folder ``to``, all of it or nothing.

    ``to`` must be absent or empty. One process at a time may unpack to the same target; a folder that a
    killed one left behind (``.<name>.part`` beside the target) is removed first.

    Raises ArchiveError where a member would leave the target, is a link, a device or encrypted, a limit is
    passed, the disk is too small, two members claim one path, or the archive is damaged.
    """
    if to.is_symlink() or (to.exists() and not (to.is_dir() and not any(to.iterdir()))):
        raise ArchiveError(f"{to} is there already and is no empty folder", hint="name a new folder")
    part = to.with_name(f".{to.name}.part")
    try:
        with _explained(archive), closing(_open(archive)) as source:
            members = _checked(source.members(limits), limits, archive.stat().st_size)
            to.parent.mkdir(parents=True, exist_ok=True)
            _refuse_full_disk(members, to.parent)
            _remove(part)
            part.mkdir()
            for member in track(members, what=f"extracting {archive.name}", total=len(members)):
                _write(source, member, part)
            part.replace(to)
    finally:
        _remove(part)


def safe_parts(name: str, *, depth: int = ArchiveLimits.depth) -> tuple[str, ...]:
    """A member's name as plain path parts; empty for the archive's own root (``./``).

    Raises ArchiveError for what could lead elsewhere on any system: absolute paths, ``..``, backslashes,
    drive letters, control characters, and names that no file system takes.
    """
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise _hostile(name, "an absolute path, a drive letter or a backslash")
    if any(ord(letter) < 32 or ord(letter) == 127 or "\ud800" <= letter <= "\udfff" for letter in name):
        raise _hostile(name, "control characters or bytes that are not UTF-8")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _hostile(name, "`..`, which leaves the target")
    if len(parts) > depth or any(len(part.encode()) > 255 for part in parts):
        raise _hostile(name, f"more than {depth} folders or a part longer than 255 bytes")
    return parts


def _hostile(name: str, what: str) -> ArchiveError:
    shown = name if len(name) <= 100 else f"{name[:100]}…"
    return ArchiveError(
        f"the archive's member {shown!r} has {what}",
        hint="nothing was unpacked; if you trust the archive, unpack it yourself and pass the folder with --source",
    )


# -- the two kinds of archive ---------------------------------------------------------------------


class _Zip:
    def __init__(self, archive: Path) -> None:
        self._zip = zipfile.ZipFile(archive)

    def members(self, limits: ArchiveLimits) -> Iterator[_Member]:
        for info in self._zip.infolist():
            # The name as stored: zipfile cuts `filename` at a NUL, which could hide what follows.
            parts = safe_parts(info.orig_filename, depth=limits.depth)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _hostile(info.filename, "the type of a link or a device")
            if info.flag_bits & 0x1:
                raise _hostile(info.filename, "a password")
            yield _Member(parts, 0 if info.is_dir() else info.file_size, info.is_dir(), info)

    def open(self, member: _Member) -> BinaryIO:
        assert isinstance(member.entry, zipfile.ZipInfo)
        return self._zip.open(member.entry)  # type: ignore[return-value]  # checks the CRC at the end

    def close(self) -> None:
        self._zip.close()


class _Tar:
    def __init__(self, archive: Path, *, gzipped: bool) -> None:
        self._stream = _TarStream(gzip.open(archive) if gzipped else archive.open("rb"))  # noqa: SIM115
        try:
            self._tar = tarfile.TarFile(fileobj=self._stream, mode="r")  # type: ignore[arg-type]
        except BaseException:
            self._stream.close()
            raise

    def members(self, limits: ArchiveLimits) -> Iterator[_Member]:
        for info in self._tar:
            parts = safe_parts(info.name, depth=limits.depth)
            if not (info.isreg() or info.isdir()):
                raise _hostile(info.name, "the type of a link or a device")
            yield _Member(parts, info.size if info.isreg() else 0, info.isdir(), info)
        self._stream.expect_end()

    def open(self, member: _Member) -> BinaryIO:
        assert isinstance(member.entry, tarfile.TarInfo)
        self._stream.largest = CHUNK
        opened = self._tar.extractfile(member.entry)
        assert opened is not None  # only None for what is no regular file, refused above
        return opened  # type: ignore[return-value]

    def close(self) -> None:
        self._tar.close()
        self._stream.close()


class _TarStream:
    """The bytes of a tar, as ``tarfile`` reads them, without its two soft spots.

    It reads a pax header of any declared size into memory, and it takes a broken header in the
    middle for the end of the archive. Here a read has an upper bound, and the end must be the
    block of zeros that POSIX asks for, followed by an intact gzip trailer.
    """

    HEADER = 64 * 1024

    def __init__(self, stream: BinaryIO | gzip.GzipFile) -> None:
        self._stream = stream
        self._last = b""
        self.largest = self.HEADER

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.largest:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        self._last = self._stream.read(size)
        return self._last

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()

    def expect_end(self) -> None:
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends without an end marker, or has a broken header")
        for _ in range(1024):  # padding after the end marker, at most a record of 10 KiB where tools are sane
            if not self._stream.read(CHUNK):
                return
        raise tarfile.ReadError("a gigabyte or more follows the end marker")


def _open(archive: Path) -> _Archive:
    with archive.open("rb") as stream:
        magic = stream.read(4)
    if magic[:2] == b"\x1f\x8b":
        return _Tar(archive, gzipped=True)
    if magic[:2] == b"PK" or zipfile.is_zipfile(archive):
        return _Zip(archive)
    return _Tar(archive, gzipped=False)


# -- checks and writing ---------------------------------------------------------------------------


def _checked(members: Iterator[_Member], limits: ArchiveLimits, archive_bytes: int) -> list[_Member]:
    """The members to write. Each is judged as it comes, so an endless archive is not read to its end."""
    kept: list[_Member] = []
    total = 0
    for count, member in enumerate(members, start=1):
        total += member.size
        _refuse("files and folders", count, limits.files)
        _refuse("bytes in one file", member.size, limits.file_bytes)
        _refuse("bytes", total, limits.total_bytes)
        if total > max(limits.ratio_from, limits.ratio * archive_bytes):
            raise _too_much(f"{total / archive_bytes:,.0f} times its size, as a decompression bomb does", limits.ratio)
        if member.parts:
            kept.append(member)
    if all(member.is_folder for member in kept):
        raise ArchiveError("the archive holds no file", hint=_GET_AGAIN)
    return kept


def _refuse(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise _too_much(f"{found:,} {what}, or more", limit)


def _too_much(what: str, limit: float) -> ArchiveError:
    return ArchiveError(
        f"the archive unpacks to {what}; the limit is {limit:,}",
        hint="if you trust the archive, unpack it yourself and pass the folder with --source",
    )


def _refuse_full_disk(members: Sequence[_Member], folder: Path) -> None:
    needed = sum(member.size + DISK_BLOCK for member in members)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _full_disk(f"needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _full_disk(what: str) -> ArchiveError:
    return ArchiveError(
        f"the disk is too small for the unpacked archive: it {what}",
        hint="free some space, or point MEDFLOW_HOME at a larger disk",
    )


def _write(source: _Archive, member: _Member, root: Path) -> None:
    path = root.joinpath(*member.parts)
    try:
        (path if member.is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        written = 0 if member.is_folder else _copy(source, member, path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _hostile("/".join(member.parts), "the path of another one") from None
    if written != member.size:
        raise ArchiveError(f"member {member.parts[-1]!r} has {written} bytes, not {member.size}", hint=_GET_AGAIN)


def _copy(source: _Archive, member: _Member, path: Path) -> int:
    written = 0
    with source.open(member) as packed, path.open("xb") as file:
        while chunk := packed.read(CHUNK):
            written += file.write(chunk)
    return written


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turn what zipfile, tarfile and the disk raise into ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except OSError as error:
        raise _disk_or_damage(archive, error) from error
    except _DAMAGE as error:
        raise ArchiveError(f"{archive.name} is no zip or tar, or is damaged: {error}", hint=_GET_AGAIN) from error


def _disk_or_damage(archive: Path, error: OSError) -> ArchiveError:
    if error.errno in _FULL:
        return _full_disk("filled up while unpacking")
    if error.errno is None:  # gzip and bz2 report damage as an OSError without a number
        return ArchiveError(f"{archive.name} is damaged: {error}", hint=_GET_AGAIN)
    return ArchiveError(
        f"{archive.name} could not be unpacked: {error.strerror}",
        hint="check that the archive and the target are accessible",
    )


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)

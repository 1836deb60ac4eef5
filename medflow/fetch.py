"""Where the images come from this time, and how they get onto this disk.

``resolve`` looks at the world and is cheap; ``fetch`` moves bytes. Both know five kinds of source: Kaggle, a
folder, an archive, a folder or archive in a bucket (`medflow.s3`), and what is generated (which ``ingest`` makes).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medflow import archive, kaggle, s3
from medflow.config.sections import SourceConfig
from medflow.datasets._layout import DICOM_SUFFIXES, IMAGE_SUFFIXES
from medflow.errors import ArchiveError, ConfigError, DownloadError, SourceError
from medflow.home import home
from medflow.progress import say
from medflow.records import DatasetCard, Generated, Source, digest_of, file_digest

LOCK_SECONDS = 6 * 3600.0
TAIL = 64 * 1024


# -- resolve --------------------------------------------------------------------------------------


def resolve(
    config: SourceConfig, card: DatasetCard, beside: Sequence[Path] = (), *, access: s3.Access = s3.AMBIENT
) -> Source:
    """The source as it is now, with a fingerprint that changes when it does, and digests of the files beside it.

    Those are the files ``beside`` it that the dataset's listing reads by itself, and the metadata file of the config.
    ``access`` is for a source in a bucket.
    Raises what ``look`` does, ConfigError where this dataset takes no metadata file, and SourceError where a file
    beside the source cannot be read.
    """
    source = look(config, card, access)
    if beside:
        digests = [_digest(path, hint="the dataset's table must be where its YAML says") for path in beside]
        source = source.model_copy(update={"beside": digest_of(digests)})
    if config.metadata is None:
        return source
    if not card.metadata:
        raise ConfigError(f"{card.name} takes no metadata file: its source is complete", hint="leave `--metadata` out")
    if s3.Place.is_meant(config.metadata):
        place = s3.Place.of(config.metadata)
        return source.model_copy(update={"metadata": s3.file_fingerprint(place, access), "metadata_uri": str(place)})
    path = Path(config.metadata).expanduser().absolute()
    digest = _digest(path, hint="check `--metadata`")
    return source.model_copy(update={"metadata": digest, "metadata_uri": str(path)})


def metadata_file(source: Source, to: Path, *, access: s3.Access = s3.AMBIENT) -> Path | None:
    """The file given with ``--metadata``, or None; one in a bucket is fetched below ``to``.

    Raises SourceError where it is no longer what ``resolve`` saw.
    """
    if not source.metadata:
        return None
    if s3.Place.is_meant(source.metadata_uri):
        return s3.bring_file(s3.Place.of(source.metadata_uri), source.metadata, to, access)
    path = Path(source.metadata_uri)
    if _digest(path, hint="check `--metadata`") != source.metadata:
        raise SourceError(f"the metadata file {path} changed after the run began", hint="run again")
    return path


def _digest(path: Path, *, hint: str) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint=hint) from error


def look(config: SourceConfig, card: DatasetCard, access: s3.Access = s3.AMBIENT) -> Source:
    """The source as it is now.

    kaggle: one small call for the version number; none where the pinned version is on disk already.
    folder: names, sizes and times, no content (20,000 files take about 0.1 s). zip: size, time and directory.
    s3: names, sizes and ETags as the store lists them.

    Raises ConfigError (no path, a version that is no number), SourceError (nothing there to read), and
    what ``kaggle.current_version`` raises.
    """
    if config.kind == "kaggle":
        return _resolve_kaggle(config, card)
    if config.kind == "folder":
        folder = _given(config)
        return Source(kind="folder", fingerprint=folder_fingerprint(folder), uri=str(folder))
    if config.kind == "s3":
        place = s3.Place.of(config.path or "")
        return Source(kind="s3", fingerprint=s3.fingerprint(place, access), uri=str(place))
    if config.kind == "zip":
        path = _given(config)
        return Source(kind="zip", fingerprint=archive_fingerprint(path), uri=str(path))
    generated = Generated(images=config.images, seed=config.seed, planted_faults=config.planted_faults)
    return Source(kind="generated", fingerprint=generated.digest(), generated=generated)


def _resolve_kaggle(config: SourceConfig, card: DatasetCard) -> Source:
    handle = _handle(card)
    version = _pinned(config.version)
    if version is None or not is_downloaded(handle, version):
        newest = _newest(handle)
        if version is not None and version > newest:
            raise DownloadError(
                f"Kaggle has no version {version} of {handle}; its newest is {newest}",
                hint=f"write source.version={newest}, or source.version=latest",
            )
        version = version or newest
    return Source(kind="kaggle", fingerprint=f"{handle}@{version}", uri=handle, version=str(version))


def _newest(handle: str) -> int:
    try:
        return kaggle.current_version(handle)
    except DownloadError as error:
        here = [
            int(path.stem) for path in downloaded(handle, 1).parent.parent.glob("*.complete") if path.stem.isdecimal()
        ]
        if not here:
            raise
        offline = f"version {max(here)} is on this disk: source.version={max(here)}"
        raise DownloadError(error.message, hint=f"{error.hint}; {offline}") from None


def _handle(card: DatasetCard) -> str:
    if card.kaggle is None:
        raise ConfigError(f"{card.name} is not on Kaggle", hint="pass its images with `--source DIR|ZIP`")
    return card.kaggle


def _pinned(version: str) -> int | None:
    if version == "latest":
        return None
    if not (version.isascii() and version.isdecimal() and int(version) > 0):
        raise ConfigError(
            f"source.version is {version!r}; expected a number or `latest`", hint="such as source.version=5"
        )
    return int(version)


def _given(config: SourceConfig) -> Path:
    """The path of the config, absolute: a later step may run in another working folder."""
    if not config.path:
        raise ConfigError(f"source.kind is {config.kind} and source.path is not set", hint="pass `--source DIR|ZIP`")
    return Path(config.path).expanduser().absolute()


def folder_fingerprint(folder: Path) -> str:
    """sha256 (64 hex) over every file's relative name, size and modification time, in order.

    Links count as what they lead to, since a dataset's listing follows them too.
    Raises SourceError where the folder is absent, unreadable or holds no file.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise SourceError(f"the source folder {folder} {what}", hint="check `--source`")
    try:
        lines = _lines(os.fspath(folder))
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}", hint="check its permissions") from error
    if not lines:
        raise SourceError(f"the source folder {folder} holds no file", hint="check `--source`")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _lines(root: str) -> list[str]:
    """``name NUL size NUL time`` of every file, sorted; no name can then look like another's size and time.

    The folders themselves come first, then what links to folders lead to, in the order of the links' names:
    each folder is listed once, under the same name every time, however the links go in circles.
    """
    lines: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [("", root)]
    while pending:
        links: list[tuple[str, str]] = []
        for prefix, folder in pending:
            _list(prefix, folder, lines, links, seen)
        pending = sorted(links)
    return sorted(lines)


def _list(prefix: str, folder: str, lines: list[str], links: list[tuple[str, str]], seen: set[tuple[int, int]]) -> None:
    pending = [(prefix, folder)]
    while pending:
        prefix, folder = pending.pop()
        identity = (facts := os.stat(folder)).st_dev, facts.st_ino
        if identity in seen:
            continue
        seen.add(identity)
        with os.scandir(folder) as entries:
            for entry in entries:
                facts = _facts(entry)
                if not stat.S_ISDIR(facts.st_mode):
                    lines.append(f"{prefix}{entry.name}\0{facts.st_size}\0{facts.st_mtime_ns}")
                else:
                    (links if entry.is_symlink() else pending).append((f"{prefix}{entry.name}/", entry.path))


def _facts(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)  # a link that leads nowhere, or to itself


def archive_fingerprint(path: Path) -> str:
    """sha256 (64 hex) over size, modification time and the directory of a zip (of a tar: its last 64 KiB).

    Raises SourceError where the file is absent.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"the source archive {path} {what}", hint="check `--source`")
    facts = path.stat()
    with path.open("rb") as stream:
        stream.seek(_directory_start(path, facts.st_size))
        tail = hashlib.file_digest(stream, "sha256").hexdigest()
    return digest_of({"bytes": facts.st_size, "modified": facts.st_mtime_ns, "directory": tail})


def _directory_start(path: Path, size: int) -> int:
    try:
        with zipfile.ZipFile(path) as opened:
            return opened.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return max(0, size - TAIL)  # a tar, or damaged, which `extract` will explain


# -- fetch ----------------------------------------------------------------------------------------


def fetch(source: Source, card: DatasetCard, to: Path, *, access: s3.Access = s3.AMBIENT) -> Path:
    """The folder on this disk that the dataset's listing reads; what is there already is not fetched again.

    kaggle: below ``home()/downloads``, laid out as kagglehub lays out its cache, so that all runs share it.
    folder: the folder itself, untouched. zip: unpacked below ``to``, in a folder named by the fingerprint.
    s3: likewise; of a folder's images there are names and sizes alone, until ``bring`` gets those that are needed.

    Raises CredentialsError, DownloadError, ArchiveError, or SourceError where a folder or archive is gone
    or is no longer what ``resolve`` saw.
    """
    if source.kind == "kaggle":
        root = downloaded(source.uri, int(source.version))
        return _once(root, _kaggle_marker(root), lambda: _from_kaggle(source, root))
    if source.kind == "folder":
        return _present(Path(source.uri))
    if source.kind == "zip":
        return _unpacked(source, to)
    if source.kind == "s3":
        return _from_bucket(source, to, access)
    raise SourceError(f"{card.name}: generated images are not fetched", hint="`ingest` makes them")


def bring(source: Source, root: Path, paths: Collection[str], to: Path, *, access: s3.Access = s3.AMBIENT) -> Path:
    """The folder that holds the files ``paths``, whole: ``root``, which ``fetch`` gave, unless it has names alone."""
    if source.kind != "s3" or (place := s3.Place.of(source.uri)).is_archive():
        return root
    with _locked(to / ".lock", what=source.uri):
        return s3.bring(place, source.fingerprint, paths, to, access)


def _from_bucket(source: Source, to: Path, access: s3.Access) -> Path:
    place = s3.Place.of(source.uri)
    if not place.is_archive():
        with _locked(to / ".lock", what=source.uri):
            return s3.listable(place, source.fingerprint, to, access, _is_never_opened)
    root = to / source.fingerprint[:16]

    def unpack() -> None:
        packed = s3.bring_file(place, source.fingerprint, to, access)
        archive.extract(packed, root)
        packed.unlink()

    return _once(root, root.with_name(f"{root.name}.complete"), unpack)


def _is_never_opened(path: str) -> bool:
    """Whether a listing takes a file by its name: every image, but for DICOM files, whose headers are read."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES - DICOM_SUFFIXES


def downloaded(handle: str, version: int) -> Path:
    """Where one version of a Kaggle dataset lies, or will lie: kagglehub's layout below our home."""
    dataset = kaggle.parse(handle)
    return home() / "downloads" / "datasets" / dataset.owner / dataset.dataset / "versions" / str(version)


def is_downloaded(handle: str, version: int) -> bool:
    root = downloaded(handle, version)
    return root.is_dir() and _kaggle_marker(root).exists()


def _kaggle_marker(root: Path) -> Path:
    return root.parent.parent / f"{root.name}.complete"


def _from_kaggle(source: Source, root: Path) -> None:
    dataset_folder = root.parent.parent
    packed = kaggle.download(source.uri, int(source.version), dataset_folder)
    try:
        archive.extract(packed, root)
    except ArchiveError as error:
        # Kept: where the disk was too small, a second download of many gigabytes would be a poor answer.
        raise ArchiveError(
            error.message, hint=f"{error.hint}; the download is {packed}, remove it to get it anew"
        ) from error
    packed.unlink()


def _present(folder: Path) -> Path:
    if not folder.is_dir():
        raise SourceError(
            f"the source folder {folder} does not exist", hint="check `--source`, and that the disk is mounted"
        )
    return folder


def _unpacked(source: Source, to: Path) -> Path:
    path = Path(source.uri)
    if archive_fingerprint(path) != source.fingerprint:
        raise SourceError(f"the source archive {path} changed after the run began", hint="run again")
    root = to / source.fingerprint[:16]
    return _once(root, root.with_name(f"{root.name}.complete"), lambda: archive.extract(path, root))


def _once(root: Path, marker: Path, make: Callable[[], None]) -> Path:
    """``root``, made by ``make`` unless its marker says that it is whole. One process makes, others wait."""
    with _locked(root.with_name(f".{root.name}.lock"), what=root.name):
        if not (marker.exists() and root.is_dir()):
            if root.exists():
                shutil.rmtree(root)
            make()
            marker.touch()
    return root


@contextmanager
def _locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock that the system gives back when its process dies, so that none is ever stale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        _acquire(file.fileno(), what)
        yield


def _acquire(descriptor: int, what: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    said = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                say(f"{what}: another process is fetching it; waiting")
                said = True
        if time.monotonic() > deadline:
            raise SourceError(
                f"{what} is being fetched by another process for hours", hint="end that process, run again"
            )
        time.sleep(0.2)

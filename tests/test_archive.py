"""Archives that nobody vouches for: what they may hold is unpacked whole, all else leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medflow.archive import ArchiveLimits, extract, safe_parts
from medflow.errors import ArchiveError

SMALL = ArchiveLimits(total_bytes=10_000_000, files=100, file_bytes=5_000_000, ratio=50, ratio_from=100_000)
FILES = {
    "a.txt": b"one",
    "images/b.png": b"\x89PNG" * 1000,
    "images/deep/er/c.bin": random.Random(0).randbytes(90_000),
    "e": b"",
}
FORMATS = ("zip", "tar", "tar.gz")


def pack(files: Mapping[str, bytes], where: Path, form: str) -> Path:
    path = where / f"made.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files.items():
                info = zipfile.ZipInfo()
                info.filename = name  # as it is: the constructor would cut it at a NUL
                info.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(info, data)
    else:
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as file:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(archive: Path, limits: ArchiveLimits = SMALL) -> ArchiveError:
    """The error, having seen that nothing but the archive lies in its folder or beside it."""
    outside = set(archive.parent.parent.iterdir())
    with pytest.raises(ArchiveError) as caught:
        extract(archive, archive.parent / "out", limits)
    assert list(archive.parent.iterdir()) == [archive]
    assert set(archive.parent.parent.iterdir()) == outside
    assert caught.value.hint
    return caught.value


@pytest.fixture
def where(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


# -- what is fine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_every_file_comes_out_as_it_was(form: str, where: Path) -> None:
    extract(pack(FILES, where, form), where / "new" / "out", SMALL)
    assert tree(where / "new" / "out") == FILES
    assert [path.name for path in (where / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=25, deadline=None)
@given(
    files=st.dictionaries(
        st.lists(
            st.text("abcXYZ äß._-0", min_size=1, max_size=8).filter(lambda part: set(part) != {"."}),
            min_size=1,
            max_size=3,
        ).map(lambda parts: "/".join(["d" + part for part in parts[:-1]] + ["f" + parts[-1]])),
        st.binary(max_size=300),
        min_size=1,
        max_size=6,
    )
)
def test_round_trip(form: str, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        extract(pack(files, Path(folder), form), Path(folder) / "out", SMALL)
        assert tree(Path(folder) / "out") == files


def test_a_tar_of_the_present_folder_is_fine(where: Path) -> None:
    """`tar czf x.tar.gz .` names the root itself, and everything with a leading `./`."""
    (where / "from").mkdir()
    (where / "from" / "x").write_text("x")
    with tarfile.open(where / "dot.tar.gz", "w:gz") as file:
        file.add(where / "from", arcname=".")
    extract(where / "dot.tar.gz", where / "out", SMALL)
    assert tree(where / "out") == {"x": b"x"}


def test_modes_and_owners_are_not_taken_over(where: Path) -> None:
    with tarfile.open(where / "suid.tar", "w") as file:
        info = tarfile.TarInfo("run.sh")
        info.mode, info.uid, info.size = 0o6777, 12345, 2
        file.addfile(info, io.BytesIO(b"ls"))
    extract(where / "suid.tar", where / "out", SMALL)
    facts = (where / "out" / "run.sh").stat()
    assert facts.st_mode & 0o7111 == 0
    assert facts.st_uid == os.getuid()


def test_an_empty_target_is_used_and_a_full_one_left_alone(where: Path) -> None:
    archive = pack(FILES, where, "zip")
    (where / "empty").mkdir()
    extract(archive, where / "empty", SMALL)
    assert tree(where / "empty") == FILES

    (where / "full").mkdir()
    (where / "full" / "mine").write_text("mine")
    with pytest.raises(ArchiveError, match="no empty folder"):
        extract(archive, where / "full", SMALL)
    assert tree(where / "full") == {"mine": b"mine"}


def test_what_a_killed_run_left_is_no_obstacle(where: Path) -> None:
    (where / ".out.part" / "images").mkdir(parents=True)
    (where / ".out.part" / "images" / "b.png").write_bytes(b"half")
    extract(pack(FILES, where, "zip"), where / "out", SMALL)
    assert tree(where / "out") == FILES


def test_a_link_in_place_of_the_target_or_its_part_is_not_followed(where: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    archive = pack(FILES, where, "zip")
    (where / ".out.part").symlink_to(tmp_path / "elsewhere")
    extract(archive, where / "out", SMALL)
    assert tree(where / "out") == FILES
    (where / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArchiveError):
        extract(archive, where / "link", SMALL)
    assert tree(tmp_path / "elsewhere") == {"mine": b"mine"}
    assert not (tmp_path / "nowhere").exists()


# -- names ----------------------------------------------------------------------------------------

HOSTILE = (
    "../x", "a/../../x", "a/..", "..", "/etc/passwd", "//host/x", "C:/x", "c:x", "C:\\x", "..\\x", "a\\..\\..\\x",
    "\\\\host\\share", "a\nb", "a\x1b[2Jb", "\x7f", "x/" * 70 + "y", "n" * 256, "ä" * 128,
)  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_refuses_the_whole_archive(name: str, form: str, where: Path) -> None:
    error = refused(pack({"fine": b"1", name: b"2", "also/fine": b"3"}, where, form))
    assert "member" in error.message
    assert "\x1b" not in error.message


def test_what_a_nul_hides_is_looked_at(where: Path) -> None:
    assert "control" in refused(pack({"fine": b"1", "x.png\0/../../y": b"2"}, where, "zip")).message


def test_a_name_in_another_encoding_is_refused(where: Path) -> None:
    path = where / "latin.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        info = tarfile.TarInfo("Lungenödem")
        file.addfile(info, io.BytesIO())
    assert "UTF-8" in refused(path).message


pieces = st.sampled_from(
    ["..", ".", "", "/", "\\", "a", "b.png", "C:", "\0", "~", "..\\", " ", "ö", "con", "...", "\u202e"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=8).map("/".join) | st.lists(pieces, min_size=1).map("".join) | st.text())
@example("a/./b//c")
def test_a_name_is_refused_or_stays_below_the_target(name: str) -> None:
    try:
        parts = safe_parts(name)
    except ArchiveError:
        return
    root = "/data/target"
    landed = os.path.normpath(os.path.join(root, *parts))
    assert landed == root or landed.startswith(root + "/")
    assert not {"..", ".", ""} & set(parts)
    assert not any(letter in part for part in parts for letter in "/\\\0")


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(
        st.lists(pieces, min_size=1, max_size=5)
        .map("/".join)
        .filter(lambda name: name.strip("/") and "\0" not in name),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_whatever_the_names_nothing_lands_outside(form: str, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "a" / "b"
        work.mkdir(parents=True)
        archive = pack(dict.fromkeys(names, b"x"), work, form)
        try:
            extract(archive, work / "out", SMALL)
        except ArchiveError:
            assert not (work / "out").exists()
        outside = {path for path in Path(folder).rglob("*") if work / "out" not in (path, *path.parents)}
        assert outside == {Path(folder) / "a", work, archive}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("names", [("x", "x/y"), ("x/y", "x"), ("x", "./x"), ("x", "x")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_path_are_refused(names: tuple[str, str], form: str, where: Path) -> None:
    if form == "zip":
        with zipfile.ZipFile(where / "made.zip", "w") as file:
            for name in names:
                file.writestr(name, "data")
    else:
        with tarfile.open(where / f"made.{form}", "w:gz" if form == "tar.gz" else "w") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 4
                file.addfile(info, io.BytesIO(b"data"))
    assert "path of another" in refused(where / f"made.{form}").message


# -- links, devices, passwords --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V"]
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, where: Path) -> None:
    path = where / "made.tar"
    with tarfile.open(path, "w") as file:
        for name, type_, link in (
            ("fine", tarfile.REGTYPE, ""),
            ("images", kind, "/etc"),
            ("images/x", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, link
            file.addfile(info, io.BytesIO())
    assert "link or a device" in refused(path).message


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(kind: int, where: Path) -> None:
    path = where / "made.zip"
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("images")
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, "/etc")
    assert "link or a device" in refused(path).message


def test_a_password_is_refused(where: Path) -> None:
    path = pack({"secret.png": b"data"}, where, "zip")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    assert "has a password" in refused(path).message


# -- bombs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_each_limit_holds(form: str, where: Path) -> None:
    archive = pack({f"{number}": os.urandom(2_000) for number in range(20)}, where, form)
    extract(archive, where / "out", ArchiveLimits(files=20, file_bytes=2_000, total_bytes=40_000))
    shutil.rmtree(where / "out")
    assert "files" in refused(archive, ArchiveLimits(files=19)).message
    assert "one file" in refused(archive, ArchiveLimits(file_bytes=1_999)).message
    assert "40,000 bytes" in refused(archive, ArchiveLimits(total_bytes=39_999)).message


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_bomb_is_refused_by_its_ratio(form: str, where: Path) -> None:
    archive = pack({"zeros": bytes(4_000_000)}, where, form)
    assert archive.stat().st_size < 10_000
    assert "bomb" in refused(archive).message


def test_blank_masks_in_a_small_archive_are_no_bomb(where: Path) -> None:
    extract(pack({f"mask{number}": bytes(90_000) for number in range(50)}, where, "zip"), where / "out")
    assert len(tree(where / "out")) == 50


def test_members_that_share_their_bytes_are_a_bomb_too(where: Path) -> None:
    """Fifield's bomb: many directory entries point at one compressed member (WOOT 2019)."""
    path = pack({"kernel": bytes(90_000)}, where, "zip")
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries = data[start:end] * 60
    tail = data[end : end + 8] + struct.pack("<HHII", 60, 60, len(entries), start) + data[end + 20 :]
    path.write_bytes(data[:start] + entries + tail)
    assert "bomb" in refused(path).message


def test_a_tar_header_of_any_size_is_not_read_into_memory(where: Path) -> None:
    """tarfile reads a pax header whole, whatever size it says of itself."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 3_000_000_000
    path = where / "pax.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1_000_000))
    assert "header of" in refused(path).message


def test_chained_tar_headers_are_not_followed_for_ever(where: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 512
    block = info.tobuf(tarfile.GNU_FORMAT) + b"n" * 512
    (where / "long.tar").write_bytes(block * 5_000 + bytes(1024))
    refused(where / "long.tar")


def sparse(size: int, where: Path) -> Path:
    """A tar of a few kilobytes with one file that is announced, truly or not, as ``size`` bytes of nothing."""
    info = tarfile.TarInfo("sparse.raw")
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.numblocks": "0", "GNU.sparse.size": str(size)}
    with tarfile.open(where / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info, io.BytesIO())
    return where / "sparse.tar"


def test_a_sparse_member_counts_at_its_full_size(where: Path) -> None:
    assert "one file" in refused(sparse(900 * 10**9, where), ArchiveLimits()).message


@pytest.fixture
def _small_files() -> Iterator[None]:
    """No file of this process may pass a mebibyte: as a full disk does it, and so that no bug fills a real one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
def test_a_disk_that_fills_up_while_unpacking_is_told(where: Path) -> None:
    path = where / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fine", b"1")
        file.writestr("large", bytes(2 * 1024 * 1024))
    assert "filled up" in refused(path, ArchiveLimits()).message


@pytest.mark.usefixtures("_small_files")
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(where: Path) -> None:
    unbounded = ArchiveLimits(total_bytes=10**18, file_bytes=10**18, ratio=1e18)
    assert "GB are free" in refused(sparse(10**17, where), unbounded).message


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_an_archive_cut_anywhere_is_refused(form: str, where: Path) -> None:
    whole = pack(FILES, where, form).read_bytes()
    # The last bytes of a tar are padding after its end marker: it is whole without them.
    needed = whole.rstrip(b"\0") + bytes(512) if form == "tar" else whole
    path = where / f"made.{form}"
    for length in {0, 1, 4, 100, 511, 512, 513, 1024, 1536, len(needed) // 2, len(needed) - 1} - {len(whole)}:
        if length < len(needed):
            path.write_bytes(whole[:length])
            refused(path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_byte_is_refused_or_harmless(form: str, where: Path) -> None:
    """Nothing but ArchiveError comes out. A zip and a gzip carry checksums, so no wrong data passes either."""
    whole = pack(FILES, where, form).read_bytes()
    path = where / f"made.{form}"
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            extract(path, where / "out", SMALL)
        except ArchiveError:
            assert not (where / "out").exists()
        else:
            if form != "tar":
                assert sorted(tree(where / "out").values()) == sorted(FILES.values())
            shutil.rmtree(where / "out")


def test_a_broken_header_in_the_middle_of_a_tar_is_not_its_end(where: Path) -> None:
    path = pack(FILES, where, "tar")
    data = bytearray(path.read_bytes())
    data[data.index(b"images/deep")] ^= 1
    path.write_bytes(data)
    assert "broken header" in refused(path).message


def test_a_member_shorter_than_it_says_is_refused(where: Path) -> None:
    path = pack({"a": b"four" * 100}, where, "zip")
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 500)
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>no</html>", b"PK", b"PK\x03\x04" + bytes(100), b"\x1f\x8b", gzip.compress(b"x" * 2000, mtime=0)],
)
def test_what_is_no_archive_is_said_to_be_none(content: bytes, where: Path) -> None:
    (where / "made.zip").write_bytes(content)
    refused(where / "made.zip")


@pytest.mark.parametrize("form", FORMATS)
def test_an_archive_without_files_is_refused(form: str, where: Path) -> None:
    assert "no file" in refused(pack({}, where, form)).message


def test_an_archive_that_is_not_there_is_said(where: Path) -> None:
    with pytest.raises(ArchiveError, match="could not be unpacked"):
        extract(where / "none.zip", where / "out", SMALL)


def test_an_unknown_compression_is_refused(where: Path) -> None:
    path = pack({"a": b"data"}, where, "zip")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + offset] = 9  # deflate64, which Windows makes of large files
    path.write_bytes(data)
    refused(path)

"""The real kagglehub and kagglesdk against a loopback Kaggle, with every fault that a network has."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import kagglehub
import pytest
from kaggle_server import ENVIRONMENT, KEY, SIGNATURE, TOKEN, USERNAME, KaggleServer, serving, silent

from medflow import kaggle
from medflow.errors import ConfigError, CredentialsError, DownloadError, MedflowError
from medflow.kaggle import Patience

NAME = "owner/chest"
HASTY = Patience(connect_seconds=1, read_seconds=1, attempts=3, pause_seconds=0.01)
ONCE = Patience(connect_seconds=1, read_seconds=1, attempts=1, pause_seconds=0.01)
REPOSITORY = Path(__file__).resolve().parents[1]


def archive_of(size: int, seed: int = 0) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("images/a.bin", random.Random(seed).randbytes(size))
        file.writestr("readme.txt", "hello")
    return packed.getvalue()


ARCHIVE = archive_of(4_000_000)


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without credentials, in a home of their own."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # kagglehub remembers the home folder from when it was imported; this is asked first.
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / ".kaggle"))
    (tmp_path / ".kaggle").mkdir()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server() -> Iterator[KaggleServer]:
    with serving() as kaggle_server:
        kaggle_server.publish(NAME, {1: archive_of(10), 3: ARCHIVE})
        yield kaggle_server


def log_in(way: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "KAGGLE_API_TOKEN":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    elif way == "KAGGLE_API_TOKEN, a file":
        (home / "token").write_text(f"{TOKEN}\n")
        monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "token"))
    elif way == "KAGGLE_USERNAME and KAGGLE_KEY":
        monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
        monkeypatch.setenv("KAGGLE_KEY", KEY)
    elif way == "~/.kaggle/access_token":
        (home / ".kaggle" / "access_token").write_text(TOKEN)
    elif way == "kaggle.json in KAGGLE_CONFIG_DIR":
        (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": USERNAME, "key": KEY}))


WAYS = (
    "KAGGLE_API_TOKEN",
    "KAGGLE_API_TOKEN, a file",
    "KAGGLE_USERNAME and KAGGLE_KEY",
    "~/.kaggle/access_token",
    "kaggle.json in KAGGLE_CONFIG_DIR",
)

# -- credentials ----------------------------------------------------------------------------------


def test_without_credentials_there_are_none() -> None:
    assert kaggle.credentials() is None


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_log_in_is_found_named_and_accepted(
    way: str, server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(way, tmp_path, monkeypatch)
    server.plant(NAME, private=True)

    found = kaggle.credentials()

    assert found is not None
    assert found.where == way.split(",")[0]
    assert TOKEN not in repr(found)
    assert KEY not in repr(found)
    assert kaggle.current_version(NAME, ONCE) == 3


def test_the_first_of_several_ways_is_the_one_that_is_used(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_to_first = (
        "kaggle.json in KAGGLE_CONFIG_DIR",
        "KAGGLE_USERNAME and KAGGLE_KEY",
        "~/.kaggle/access_token",
        "KAGGLE_API_TOKEN",
    )
    for way in last_to_first:
        log_in(way, tmp_path, monkeypatch)
        found = kaggle.credentials()
        assert found is not None
        assert found.where == way
        kaggle.current_version(NAME, ONCE)
    kinds = [str(request.authorization).split()[0] for request in server.requests("GetDataset")]
    assert kinds == ["Basic", "Basic", "Bearer", "Bearer"]


def test_kaggle_json_in_the_home_folder_is_found_by_a_new_process(tmp_path: Path) -> None:
    (tmp_path / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": USERNAME, "key": KEY}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    code = "from medflow import kaggle; print(kaggle.credentials())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "~/.kaggle/kaggle.json" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "content", ["{", "[]", "7", '{"username": "reader"}', '{"username": 1, "key": 2}', '{"username": "", "key": ""}']
)
def test_a_broken_kaggle_json_is_an_error_and_not_quoted(content: str, tmp_path: Path) -> None:
    (tmp_path / ".kaggle" / "kaggle.json").write_text(content)
    with pytest.raises(CredentialsError) as caught:
        kaggle.credentials()
    assert "KAGGLE_API_TOKEN" in caught.value.hint


@pytest.mark.parametrize("token", ["  ", f"{TOKEN}\nX-Injected: 1", f"{TOKEN}é", TOKEN * 40])
def test_a_token_that_cannot_be_one_is_an_error_and_not_quoted(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    with pytest.raises(CredentialsError) as caught:
        kaggle.credentials()
    assert TOKEN not in f"{caught.value.message} {caught.value.hint}"


def test_a_token_that_ends_with_a_newline_is_taken(server: KaggleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.plant(NAME, private=True)
    monkeypatch.setenv("KAGGLE_API_TOKEN", f" {TOKEN}\r\n")
    assert kaggle.current_version(NAME, ONCE) == 3


# -- versions and refusals ------------------------------------------------------------------------


def test_a_public_dataset_needs_no_credentials(server: KaggleServer) -> None:
    assert kaggle.current_version(NAME, ONCE) == 3
    assert server.seen[0].authorization is None
    assert server.seen[0].user_agent.startswith("kagglehub/")


def test_a_private_dataset_without_credentials_names_every_way(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, private=True)
    with pytest.raises(CredentialsError) as caught:
        kaggle.current_version(NAME, HASTY)
    for way in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "access_token", "kaggle.json", "--source"):
        assert way in caught.value.hint
    assert len(server.seen) == 1, "a refusal is not asked for twice"
    with pytest.raises(CredentialsError):
        kaggle.download(NAME, 3, tmp_path / "to", HASTY)
    assert server.sent == 0


@pytest.mark.parametrize(("status", "advice"), [(401, "expired"), (403, "accept the dataset's terms")])
def test_refused_credentials_are_named_and_explained(
    status: int, advice: str, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    server.plant(NAME, status=status)
    with pytest.raises(CredentialsError) as caught:
        kaggle.current_version(NAME, HASTY)
    assert f"{NAME} ({status})" in caught.value.message
    assert "KAGGLE_API_TOKEN" in caught.value.message
    assert advice in caught.value.hint


def test_a_missing_dataset_and_a_missing_version_are_named(server: KaggleServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no dataset owner/none \(404\)"):
        kaggle.current_version("owner/none", HASTY)
    with pytest.raises(DownloadError, match=r"no dataset owner/chest, version 2 \(404\)"):
        kaggle.download(NAME, 2, tmp_path / "to", HASTY)


@pytest.mark.parametrize("handle", ["", "owner", "owner/", "/name", "../name", "a/b/c", "owner/name/versions/2"])
def test_a_handle_that_is_none_is_refused(handle: str) -> None:
    with pytest.raises(ConfigError, match="owner/dataset"):
        kaggle.current_version(handle, ONCE)


def test_an_unknown_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "MOON")
    with pytest.raises(ConfigError, match="MOON"):
        kaggle.current_version(NAME, ONCE)


def test_what_passes_is_waited_for_and_what_does_not_is_given_up(server: KaggleServer) -> None:
    server.plant(NAME, status=503, status_times=2)
    assert kaggle.current_version(NAME, HASTY) == 3

    server.seen.clear()
    server.plant(NAME, status=429, status_times=100)
    with pytest.raises(DownloadError, match="answered 429"):
        kaggle.current_version(NAME, HASTY)
    assert len(server.seen) == HASTY.attempts


def test_a_sign_in_page_is_not_taken_for_kaggle(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, garbage=True)
    for call in (lambda: kaggle.current_version(NAME, ONCE), lambda: kaggle.download(NAME, 3, tmp_path / "to", ONCE)):
        with pytest.raises(DownloadError, match="is not Kaggle's"):
            call()
    assert not list((tmp_path / "to").iterdir())


def test_a_server_that_says_nothing_is_left(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, stalls=True)
    patience = Patience(connect_seconds=0.3, read_seconds=0.3, attempts=2, pause_seconds=0.01)
    started = time.monotonic()
    with pytest.raises(DownloadError, match="could not be reached"):
        kaggle.current_version(NAME, patience)
    with pytest.raises(DownloadError, match="could not be reached"):
        kaggle.download(NAME, 3, tmp_path / "to", patience)
    assert time.monotonic() - started < 5


def test_offline_points_at_source(tmp_path: Path) -> None:
    with silent():
        for call in (lambda: kaggle.current_version(NAME, HASTY), lambda: kaggle.download(NAME, 3, tmp_path, HASTY)):
            with pytest.raises(DownloadError, match="could not be reached") as caught:
                call()
            assert "--source DIR|ZIP" in caught.value.hint


# -- download -------------------------------------------------------------------------------------


def test_a_download_is_whole_and_not_repeated(server: KaggleServer, tmp_path: Path) -> None:
    archive = kaggle.download(NAME, 3, tmp_path / "to", ONCE)
    assert archive.read_bytes() == ARCHIVE
    assert kaggle.download(NAME, 3, tmp_path / "to", ONCE) == archive
    assert len(server.requests("storage")) == 1


def test_the_storage_is_never_sent_credentials(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    server.plant(NAME, private=True, cuts=1)
    kaggle.download(NAME, 3, tmp_path / "to", HASTY)
    assert all(request.authorization == f"Bearer {TOKEN}" for request in server.requests("DownloadDataset"))
    assert [request.authorization for request in server.requests("storage")] == [None] * 3


def test_a_cut_is_taken_up_where_it_broke(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1)
    archive = kaggle.download(NAME, 3, tmp_path / "to", HASTY)
    assert archive.read_bytes() == ARCHIVE
    asked = [request.range for request in server.requests("storage") if request.range]
    assert len(asked) == 1
    begun = int(asked[0].removeprefix("bytes=").removesuffix("-"))
    assert len(ARCHIVE) // 2 - 128 * 1024 <= begun <= len(ARCHIVE) // 2


def test_a_download_that_broke_off_is_resumed_by_the_next_run(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1)
    with pytest.raises(DownloadError, match=r"broke off after [12]\.\d MB") as caught:
        kaggle.download(NAME, 3, tmp_path / "to", ONCE)
    assert "run again: it resumes" in caught.value.hint

    assert kaggle.download(NAME, 3, tmp_path / "to", ONCE).read_bytes() == ARCHIVE
    assert server.requests("storage")[-1].range is not None


def test_any_number_of_cuts_with_progress_is_survived(server: KaggleServer, tmp_path: Path) -> None:
    big = archive_of(40_000_000)
    server.publish(NAME, {4: big})
    server.plant(NAME, cuts=5)
    two = Patience(connect_seconds=1, read_seconds=1, attempts=2, pause_seconds=0.01)
    assert kaggle.download(NAME, 4, tmp_path / "to", two).read_bytes() == big


def test_a_connection_that_always_breaks_is_given_up(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1000, ranges=False)
    with pytest.raises(DownloadError, match="broke off"):
        kaggle.download(NAME, 3, tmp_path / "to", HASTY)
    assert len(server.requests("storage")) <= HASTY.attempts + 2


def test_a_storage_that_cannot_resume_is_asked_again_from_the_start(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1, ranges=False)
    assert kaggle.download(NAME, 3, tmp_path / "to", HASTY).read_bytes() == ARCHIVE


@pytest.mark.parametrize("status", [200, 403, 416])
def test_a_rest_that_is_refused_is_never_appended(status: int, server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1, rest_status=status, rest_times=1, without_checksum=True)
    assert kaggle.download(NAME, 3, tmp_path / "to", HASTY).read_bytes() == ARCHIVE


def test_a_busy_storage_costs_nothing_of_what_has_come(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1, rest_status=503, rest_times=1)
    assert kaggle.download(NAME, 3, tmp_path / "to", HASTY).read_bytes() == ARCHIVE
    ranges = [request.range for request in server.requests("storage") if request.range]
    assert len(ranges) == 2
    assert ranges[0] == ranges[1]


def test_a_wrong_checksum_keeps_nothing(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, wrong_checksum=True)
    with pytest.raises(DownloadError, match="checksum") as caught:
        kaggle.download(NAME, 3, tmp_path / "to", HASTY)
    assert "run again" in caught.value.hint
    assert not list((tmp_path / "to").iterdir())


def test_a_wrong_length_keeps_nothing_where_there_is_no_checksum(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1, rest_short=True, without_checksum=True)
    with pytest.raises(DownloadError, match="were announced"):
        kaggle.download(NAME, 3, tmp_path / "to", HASTY)
    assert not list((tmp_path / "to").iterdir())


def test_two_archives_of_one_version_are_never_mixed(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1)
    with pytest.raises(DownloadError):
        kaggle.download(NAME, 3, tmp_path / "to", ONCE)
    replaced = archive_of(4_000_000, seed=1)
    server.publish(NAME, {3: replaced})
    assert kaggle.download(NAME, 3, tmp_path / "to", ONCE).read_bytes() == replaced
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["3.archive"]


def test_a_part_that_is_too_long_is_begun_again(server: KaggleServer, tmp_path: Path) -> None:
    server.plant(NAME, cuts=1)
    with pytest.raises(DownloadError):
        kaggle.download(NAME, 3, tmp_path / "to", ONCE)
    (part,) = (tmp_path / "to").glob("*.part")
    part.write_bytes(bytes(len(ARCHIVE) + 1))
    assert kaggle.download(NAME, 3, tmp_path / "to", ONCE).read_bytes() == ARCHIVE


def test_no_secret_is_ever_said(
    server: KaggleServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    said = ""
    faults: list[dict[str, object]] = [{"status": status} for status in (400, 401, 403, 404, 429, 500, 503)] + [
        {"garbage": True},
        {"cuts": 99},
        {"wrong_checksum": True},
    ]
    for number, fault in enumerate(faults):
        server.planted.clear()
        server.plant(NAME, **fault)
        with pytest.raises(MedflowError) as caught:
            kaggle.download(NAME, 3, tmp_path / str(number), ONCE)
        said += f"{caught.value!r} {caught.value.message} {caught.value.hint} "
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    out, err = capfd.readouterr()
    for secret in (TOKEN, SIGNATURE):
        assert secret not in said + out + err
    assert TOKEN not in caplog.text
    assert out == "", "standard output belongs to --json"


# -- kagglehub itself as the oracle ---------------------------------------------------------------


def test_kagglehub_gets_the_same_archive_from_this_server(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server speaks what the whole client expects, not only the calls that we make."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "theirs"))
    root = Path(kagglehub.dataset_download(NAME))
    assert root == tmp_path / "theirs" / "datasets" / "owner" / "chest" / "versions" / "3"
    ours = kaggle.download(NAME, 3, tmp_path / "ours", ONCE)
    with zipfile.ZipFile(ours) as file:
        for name in file.namelist():
            assert (root / name).read_bytes() == file.read(name)

"""Doctor: each check tells the truth about a machine that is really so, and says what to do."""

from __future__ import annotations

import importlib.metadata
import socket
import sqlite3
from pathlib import Path

import pytest

from medflow import doctor


def test_this_machine_can_run() -> None:
    found = doctor.examine()
    amiss = [item for item in found if item.needed and not item.ok]
    assert amiss == []
    names = [item.check for item in found]
    assert len(names) == len(set(names))
    wanted = {"python", "packages", "gpu", "disk", "memory", "kaggle", "state", "stack", "uv"}
    assert wanted | {"port 3000", "port 8237", "port 5000"} == set(names)


def test_whatever_is_amiss_has_a_remedy_and_nothing_else_has() -> None:
    for item in doctor.examine():
        assert bool(item.remedy) == (not item.ok), item


def test_a_check_that_breaks_is_amiss_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENML_LOCAL_STORES_PATH", "x" * 300)
    by_name = {item.check: item for item in doctor.examine()}
    assert not by_name["stack"].ok
    assert by_name["python"].ok


@pytest.mark.parametrize("number", doctor.PORTS)
def test_a_taken_port_is_seen_and_needs_not_be_free(number: int) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", number))
        except OSError:
            pass  # somebody else holds it, which is as good
        else:
            holder.listen()
        found = doctor.port(number)
    assert (found.ok, found.needed) == (False, False)
    assert "medflow" in found.remedy


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLOW_HOME", str(tmp_path / "new" / "deep"))
    assert doctor.state().ok
    assert not (tmp_path / "new").exists(), "looking makes nothing"
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDFLOW_HOME", str(tmp_path / "file"))
    assert not doctor.state().ok
    monkeypatch.setenv("MEDFLOW_HOME", str(tmp_path / "file" / "below"))
    assert not doctor.state().ok


def test_a_state_folder_without_room_for_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLOW_HOME", "/proc/medflow")
    assert not doctor.state().ok


def test_kaggle_credentials_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not doctor.kaggle().ok
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef0123456789abcdef")
    found = doctor.kaggle()
    assert found.ok
    assert "KAGGLE_KEY" in found.found
    assert "0123456789" not in found.model_dump_json()


def _database(folder: Path, statement: str) -> None:
    path = folder / "default_zen_store" / "zenml.db"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(statement)
    connection.commit()
    connection.close()


def test_the_stack_is_read_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENML_LOCAL_STORES_PATH", str(tmp_path))
    assert "will be registered" in doctor.stack().found
    _database(tmp_path, "create table stack (name text); insert into stack values ('medflow_local')")
    assert "in place" in doctor.stack().found


def test_a_damaged_store_is_amiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENML_LOCAL_STORES_PATH", str(tmp_path))
    _database(tmp_path, "create table stack (name text)")
    (tmp_path / "default_zen_store" / "zenml.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    found = doctor.stack()
    assert not found.ok
    assert "MEDFLOW_HOME" in found.remedy


def test_packages_are_held_against_the_lock() -> None:
    version = importlib.metadata.version("pydantic")
    hashes = " \\\n    --hash=sha256:00\n"
    assert (
        doctor._differ_from_lock(f"pydantic=={version}{hashes}numpy=={importlib.metadata.version('numpy')}{hashes}")
        == []
    )
    assert doctor._differ_from_lock(f"pydantic==0.1{hashes}") == [f"pydantic {version} (0.1)"]
    assert doctor._differ_from_lock(f"no-such-package-here==1.0{hashes}") == ["no-such-package-here absent (1.0)"]
    assert doctor._differ_from_lock(f"no-such-package-here==1.0 ; sys_platform == 'win32'{hashes}") == []


def test_packages_are_held_against_what_is_required() -> None:
    assert doctor._miss_requirements(["pydantic>=2", "numpy", "x; python_version < '3'"]) == []
    version = importlib.metadata.version("pydantic")
    assert doctor._miss_requirements(["pydantic<2"]) == [f"pydantic {version} (<2)"]


def test_the_stack_is_called_as_the_platform_calls_it() -> None:
    from medflow.platform.stack import STACK

    assert doctor._stack_name() == STACK

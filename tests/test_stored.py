"""Artifacts as indexed folders: every kind of damage is told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import s3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medflow.errors import ArtifactError
from medflow.platform import stack, stored
from medflow.platform.context import StoredFiles


@pytest.fixture(scope="module")
def store():
    return stack.client().active_stack.artifact_store


@pytest.fixture
def uri(store, request) -> str:
    folder = Path(store.path) / "tests" / request.node.name.replace("[", "_").replace("]", "_").replace("/", "_")
    folder.mkdir(parents=True)
    return str(folder)


def _write(store, uri: str, tmp_path: Path) -> stored.Index:
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.bin").write_bytes(b"a" * 1000)
    (root / "deep" / "er" / "b.bin").write_bytes(bytes(range(256)) * 40)
    (root / "empty").write_bytes(b"")
    return stored.write_folder(store, uri, root, [path for path in root.rglob("*") if path.is_file()])


def test_whole(store, uri, tmp_path):
    index = _write(store, uri, tmp_path)
    assert index.size() == 1000 + 256 * 40
    assert stored.quick_check(store, uri, index.sha256()) is None
    assert stored.full_check(store, uri, index.sha256()) is None
    assert stored.read_file(store, uri, "a.bin") == b"a" * 1000


@pytest.mark.parametrize("damage", ["missing", "truncated", "index", "no index"])
def test_quick_check_tells(store, uri, tmp_path, damage):
    index = _write(store, uri, tmp_path)
    target = Path(uri) / "deep" / "er" / "b.bin"
    if damage == "missing":
        target.unlink()
    elif damage == "truncated":
        target.write_bytes(target.read_bytes()[:-1])
    elif damage == "index":
        (Path(uri) / stored.INDEX).write_bytes((Path(uri) / stored.INDEX).read_bytes() + b" ")
    else:
        (Path(uri) / stored.INDEX).unlink()
    assert stored.quick_check(store, uri, index.sha256())


def test_only_the_full_check_reads_every_byte(store, uri, tmp_path):
    index = _write(store, uri, tmp_path)
    (Path(uri) / "a.bin").write_bytes(b"b" + b"a" * 999)
    assert stored.quick_check(store, uri, index.sha256()) is None
    assert "a.bin" in (stored.full_check(store, uri, index.sha256()) or "")
    with pytest.raises(ArtifactError):
        stored.read_file(store, uri, "a.bin")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(st.from_regex(r"[a-z]{1,8}\.bin", fullmatch=True), st.binary(max_size=300), min_size=1))
def test_round_trip(store, tmp_path_factory, files):
    uri = str(tmp_path_factory.mktemp("round", numbered=True).relative_to("/"))
    uri = str(Path(store.path) / uri)
    Path(uri).mkdir(parents=True)
    index = stored.write_files(store, uri, files)
    assert {name: stored.read_file(store, uri, name) for name in files} == files
    assert stored.read_index(store, uri) == index


def test_an_artifact_of_a_store_that_has_moved_is_not_called_damaged(store, tmp_path):
    with pytest.raises(ArtifactError, match="is not in its artifact store, which is at") as told:
        stored.read_index(store, str(tmp_path / "elsewhere"))
    assert "damaged" not in str(told.value)


def remote(url: str):
    """An S3 store as ZenML makes it, with a client of its own."""
    from zenml.enums import StackComponentType
    from zenml.integrations.s3.artifact_stores import S3ArtifactStore
    from zenml.integrations.s3.flavors.s3_artifact_store_flavor import S3ArtifactStoreConfig

    place = {"endpoint_url": url, "region_name": "us-east-1"}
    config = S3ArtifactStoreConfig(path="s3://medflow", key="test", secret="test-secret", client_kwargs=place)
    now = datetime.now(UTC)
    return S3ArtifactStore(
        name="s3", id=uuid4(), config=config, flavor="s3", type=StackComponentType.ARTIFACT_STORE, user=None,
        created=now, updated=now, environment={}, secrets=[],
    )  # fmt: skip


@pytest.mark.s3
def test_what_another_process_writes_to_an_object_store_is_seen(tmp_path):
    with s3.server(tmp_path) as url:
        mine, other = (StoredFiles(remote(url), "s3://medflow/folder") for _ in range(2))
        mine.write("a", b"1")
        assert mine.names() == ["a"] and mine.read("b") is None
        other.write("b", b"2")
        assert mine.names() == ["a", "b"] and mine.read("b") == b"2"
        other.remove("a")
        mine.remove("a")
        assert mine.names() == ["b"] and mine.read("a") is None

"""Images without an engine: a layer is the same bytes everywhere, and a real registry keeps what was appended."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import registries
from hypothesis import given
from hypothesis import strategies as st

from medflow.container import ImageName, Layer, Prepared, Repository, prepare, write_layer
from medflow.container.names import is_loopback
from medflow.container.repository import DOCKER_MANIFEST, OCI_MANIFEST, Manifest
from medflow.errors import ArtifactError, ConfigError, ServingError

needs_registry = pytest.mark.skipif(registries.PROGRAM is None, reason="there is no docker-registry")
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "path", "reference"),
    [
        ("python:3.11", "docker.io", "library/python", "3.11"),
        ("someone/model", "docker.io", "someone/model", "latest"),
        ("localhost/model:1", "localhost", "model", "1"),
        ("127.0.0.1:5000/a/b:1a2b", "127.0.0.1:5000", "a/b", "1a2b"),
        (f"ghcr.io/a/b:1@sha256:{'0' * 64}", "ghcr.io", "a/b", f"sha256:{'0' * 64}"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, host: str, path: str, reference: str) -> None:
    name = ImageName.parse(text)
    assert (name.host, name.path, name.reference) == (host, path, reference)
    assert ImageName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["", "ghcr.io/", "ghcr.io/A:1", "a/b:", "a/b@sha256:12", "https://ghcr.io/a"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no name of an image"):
        ImageName.parse(text)


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "k3d.localhost:5000"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["registry.example.org", "10.0.0.1:5000", "localhost.example.org", "[2001:db8::1]"])
def test_everything_else_does(host: str) -> None:
    assert not is_loopback(host)


# -- layers --------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.text("abé/", min_size=1, max_size=120).map(lambda t: t.strip("/") or "a"), st.binary(max_size=50)
    )
)
def test_the_same_files_are_the_same_layer(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    layers = []
    for order in (sorted(files), sorted(files, reverse=True)):
        folder = tmp_path_factory.mktemp("files")
        for number, name in enumerate(order):
            path = folder / hashlib.sha256(name.encode()).hexdigest()[:2] / f"{name.replace('/', '_')[:100]}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(files[name])
            path.chmod(0o600 if number % 2 else 0o755)
            os.utime(path, (number, number))
        layers.append(write_layer(folder, tmp_path_factory.mktemp("layer") / "tar", at="bento"))
    assert layers[0].digest == layers[1].digest


def test_the_server_may_read_every_file(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True, mode=0o700)
    (tmp_path / "in" / "deep" / "golden.safetensors").write_bytes(b"12")
    (tmp_path / "in" / "deep" / "golden.safetensors").chmod(0o600)
    layer = write_layer(tmp_path / "in", tmp_path / "tar", at="bento")
    with tarfile.open(layer.path) as archive:
        found = {member.name: (member.mode, member.uid, member.mtime) for member in archive}
    assert found == {
        "bento": (0o755, 1000, 0),
        "bento/deep": (0o755, 1000, 0),
        "bento/deep/golden.safetensors": (0o644, 1000, 0),
    }


def test_a_link_is_no_part_of_a_layer(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "shadow").symlink_to("/etc/shadow")
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        write_layer(tmp_path / "in", tmp_path / "tar", at="bento")


# -- a registry ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def a_layer(folder: Path, content: bytes = b"weights") -> Layer:
    (folder / "bento").mkdir(parents=True)
    (folder / "bento" / "model.onnx").write_bytes(content)
    return write_layer(folder / "bento", folder / "tar", at="bento")


def push_base(host: str, path: str, kind: str = DOCKER_MANIFEST, tag: str = "1") -> Manifest:
    """An image of one small layer."""
    repository = Repository(host, path)
    layers = {"type": "layers", "diff_ids": [digest(b"below")]}
    config = json.dumps({"os": "linux", "config": {"User": "1000"}, "rootfs": layers, "history": [{}]}).encode()
    for blob in (config, b"below"):
        repository.push_blob(digest(blob), blob)
    described = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(b"below"), "size": 5}
    made = {"schemaVersion": 2, "mediaType": kind, "layers": [described],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config),
                       "size": len(config)}}  # fmt: skip
    manifest = Manifest(json.dumps(made).encode(), kind)
    repository.put_manifest(tag, manifest)
    return manifest


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def prepared(host: str, base: str, to: str, layer: Layer) -> Prepared:
    names = (ImageName(host, base, "1"), ImageName(host, to))
    return prepare(names[0], layer, names[1], tag="phantom-12", labels={"medflow.model": "phantom@3"})


def config_of(repository: Repository, manifest: Manifest) -> dict[str, Any]:
    return json.loads(repository.document(manifest.content["config"]["digest"]))


@needs_registry
@pytest.mark.parametrize("kind", [DOCKER_MANIFEST, OCI_MANIFEST])
@pytest.mark.parametrize("to", ["same", "other/one"])
def test_a_layer_lies_on_top_of_the_base(host: str, tmp_path: Path, kind: str, to: str) -> None:
    base = push_base(host, "same", kind)
    layer = a_layer(tmp_path, f"{kind} {to}".encode())
    made = prepared(host, "same", to, layer)
    there = Repository(host, to)
    assert there.manifest(str(made.name.tag)) is None
    assert made.push()
    manifest = there.manifest(str(made.name.tag))
    assert manifest is not None and manifest.digest == made.name.digest and manifest.kind == kind
    assert made.base_digest == base.digest
    assert made.name.tag == f"phantom-12-{made.name.digest[7:19]}"
    assert [entry["digest"] for entry in manifest.content["layers"]] == [digest(b"below"), layer.digest]
    config = config_of(there, manifest)
    assert config["rootfs"]["diff_ids"] == [digest(b"below"), layer.digest]
    assert len(config["history"]) == 2
    assert config["config"] == {"User": "1000", "Labels": {"medflow.model": "phantom@3"}}
    assert b"".join(there.blob(layer.digest)) == layer.path.read_bytes()


@needs_registry
def test_the_same_again_is_the_same_image_and_pushes_nothing(host: str, tmp_path: Path) -> None:
    push_base(host, "again")
    first = prepared(host, "again", "again", a_layer(tmp_path / "one"))
    second = prepared(host, "again", "again", a_layer(tmp_path / "two"))
    other = prepared(host, "again", "again", a_layer(tmp_path / "three", b"other weights"))
    assert [made.push() for made in (first, second, other)] == [True, False, True]
    assert first.name == second.name != other.name


@needs_registry
def test_every_platform_of_an_index_gets_the_layer(host: str, tmp_path: Path) -> None:
    single = push_base(host, "many", OCI_MANIFEST)
    entry = {"mediaType": OCI_MANIFEST, "digest": single.digest, "size": len(single.raw)}
    platforms = [{"os": "linux", "architecture": "amd64"}, {"os": "unknown", "architecture": "unknown"}]
    entries = [{**entry, "platform": platform} for platform in platforms]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    Repository(host, "many").put_manifest("1", Manifest(json.dumps(index).encode(), OCI_INDEX))
    made = prepared(host, "many", "many", a_layer(tmp_path))
    made.push()
    top = Repository(host, "many").manifest(str(made.name.tag))
    assert top is not None and top.kind == OCI_INDEX
    (only,) = top.content["manifests"]
    assert only["platform"]["architecture"] == "amd64"
    manifest = Repository(host, "many").manifest(only["digest"])
    assert manifest is not None and len(manifest.content["layers"]) == 2


@needs_registry
def test_layers_are_copied_from_another_registry(host: str, tmp_path: Path) -> None:
    push_base(host, "far")
    with registries.registry(tmp_path / "near") as near:
        name = ImageName(near, "models/far")
        made = prepare(ImageName(host, "far", "1"), a_layer(tmp_path), name, tag="p", labels={})
        assert made.push()
        assert b"".join(Repository(near, "models/far").blob(digest(b"below"))) == b"below"


@needs_registry
def test_a_base_that_is_not_there_is_named(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no image .*/nothing:1"):
        prepared(host, "nothing", "nothing", a_layer(tmp_path))


@needs_registry
def test_a_layer_that_the_registry_altered_is_noticed(tmp_path: Path) -> None:
    with registries.registry(tmp_path / "registry") as host:
        push_base(host, "bad")
        layer = a_layer(tmp_path)
        prepared(host, "bad", "bad", layer).push()
        hexadecimal = layer.digest[7:]
        blob = tmp_path / "registry/blobs/docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")
        with pytest.raises(ArtifactError, match="another content than its digest"):
            list(Repository(host, "bad").blob(layer.digest))


def test_a_registry_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medflow.container.repository.RETRIES", 0)
    with pytest.raises(ServingError, match=r"the registry 127\.0\.0\.1:9 does not answer"):
        prepared("127.0.0.1:9", "a", "a", a_layer(tmp_path))


# -- credentials ---------------------------------------------------------------------------------


@needs_registry
@pytest.mark.parametrize("way", ["password", "token"])
def test_a_registry_is_told_what_docker_login_left(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with registries.tokens(tmp_path / "auth") as sold:
        section = registries.asks_for_password(tmp_path / "auth") if way == "password" else sold.section
        with registries.registry(tmp_path / "registry", section) as host:
            with pytest.raises(ServingError, match="refuses") as refused:
                push_base(host, "closed")
            assert refused.value.hint == f"docker login {host}"
            registries.docker_login(tmp_path / "docker", host, password="wrong")
            with pytest.raises(ServingError, match="refuses") as refused:
                push_base(host, "closed")
            assert "wrong" not in str(refused.value)
            registries.docker_login(tmp_path / "docker", host)
            push_base(host, "closed")
            assert prepared(host, "closed", "open", a_layer(tmp_path)).push()
    if way == "token":
        assert sold.asked[-1]["service"] == ["here"]


def test_a_password_is_in_no_text_of_a_login() -> None:
    from medflow.container.login import Login

    assert "secret" not in repr(Login("someone", "secret", "secret"))

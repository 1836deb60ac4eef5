"""A bucket as a source: what is fetched, what is refused, what is resumed, and what is sent there by content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3 as server
from test_fetch import CARD, FILES, tree, write, zipped
from test_ingest import SPEC, draw
from zenml.client import Client
from zenml.enums import StackComponentType as Kind

from medflow import datasets, fetch, s3
from medflow.config.sections import IngestConfig, RunConfig, SourceConfig, TimmModel
from medflow.config.sections.place import PlaceConfig, StepPlace, Volume
from medflow.datasets import DatasetSpec, Listing
from medflow.errors import ConfigError, CredentialsError, DownloadError, MedflowError, SourceError
from medflow.ingest import ingest, ingest_shard
from medflow.merge_shards import merge_shards
from medflow.platform import stack, store_access
from medflow.platform.kubernetes.upload import in_reach_of_pods
from medflow.records import Generated, Source
from medflow.s3 import access as accessing
from medflow.s3 import bucket, download
from medflow.twins import write_twin

pytestmark = pytest.mark.s3
SECRET = "wrong-secret-wrong-secret"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server.server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def access(url: str) -> s3.Access:
    return s3.Access(server.KEY, server.SECRET, endpoint=url, region=server.REGION)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> s3.Place:
    """A prefix of this test's own."""
    return s3.Place(server.BUCKET, f"t/{abs(hash(request.node.name))}")


def put(url: str, place: s3.Place, files: dict[str, bytes]) -> None:
    client = server.client(url)
    for name, data in files.items():
        client.put_object(Bucket=place.bucket, Key=place.below(name).prefix, Body=data)


def resolve(place: s3.Place, access: s3.Access) -> Source:
    return fetch.resolve(SourceConfig(kind="s3", path=str(place)), CARD, access=access)


# -- what it is ----------------------------------------------------------------------------------


def test_the_same_content_has_the_same_fingerprint_wherever_it_lies(url, access, place):
    put(url, place.below("one"), FILES)
    put(url, place.below("two"), FILES)
    first, second = resolve(place.below("one"), access), resolve(place.below("two"), access)
    assert first.digest() == second.digest() and first.uri != second.uri
    put(url, place.below("two"), {"readme.txt": b"hullo"})  # of the same length
    assert resolve(place.below("two"), access).digest() != first.digest()
    put(url, place.below("one"), {"new.png": b""})
    assert resolve(place.below("one"), access).digest() != first.digest()


def test_an_archive_is_unpacked_and_a_new_one_is_another_source(url, access, place, tmp_path):
    archive = place.below("covid.zip")
    put(url, place, {"covid.zip": zipped(tmp_path / "a.zip", FILES).read_bytes()})
    source = resolve(archive, access)
    root = fetch.fetch(source, CARD, tmp_path / "to", access=access)
    assert tree(root) == FILES
    assert fetch.bring(source, root, ["readme.txt"], tmp_path / "to", access=access) == root
    put(url, place, {"covid.zip": zipped(tmp_path / "b.zip", FILES | {"c.png": b"c"}).read_bytes()})
    assert resolve(archive, access).digest() != source.digest()
    with pytest.raises(SourceError, match="changed after the run began"):
        fetch.fetch(source, CARD, tmp_path / "elsewhere", access=access)


@pytest.mark.parametrize("uri", ["s3:/b/x", "s3://", "s3://B/x", "s3://key:hush@bucket/x", "https://x/y", ""])
def test_what_is_no_place_in_a_bucket_is_refused_without_repeating_a_secret(uri):
    with pytest.raises(ConfigError, match=r"expected s3://BUCKET/PREFIX") as caught:
        s3.Place.of(uri)
    assert "hush" not in str(caught.value) + caught.value.hint


def test_places(url):
    assert s3.Place.of("s3://images") == s3.Place("images", "")
    assert str(s3.Place.of("s3://images/a/b/")) == "s3://images/a/b"
    assert s3.Place.of("s3://images/a.ZIP").is_archive() and not s3.Place.of("s3://images/a").is_archive()


# -- what is fetched -----------------------------------------------------------------------------


def test_a_listing_gets_tables_whole_and_images_by_name_then_a_shard_only_its_own(url, access, place, tmp_path):
    put(url, place, FILES)
    source = resolve(place, access)
    root = fetch.fetch(source, CARD, tmp_path, access=access)
    assert tree(root) == {"images/a.png": b"\0\0\0", "images/b.png": b"\0\0", "readme.txt": b"hello"}
    data = fetch.bring(source, root, ["images/b.png", "images/absent.png"], tmp_path, access=access)
    assert tree(data) == {"images/b.png": b"bb"}


@pytest.mark.parametrize("name", datasets.names())
def test_no_listing_opens_an_image(name, tmp_path):
    """On which it rests that names are enough: the listing is the same where every image is zeros."""
    spec = datasets.get(name)
    write_twin(name, tmp_path / "twin", Generated(images=60, seed=1, planted_faults=True))
    root = tmp_path / "twin"
    metadata = next(root.parent.rglob(spec.card.metadata), None) if spec.card.metadata else None
    before = _listing(spec, root, metadata)
    for path in root.rglob("*"):
        if path.is_file() and fetch._is_never_opened(path.name):
            path.write_bytes(bytes(path.stat().st_size))
    assert _listing(spec, root, metadata) == before


def _listing(spec: DatasetSpec, root: Path, metadata: Path | None) -> Listing:
    return spec.listing_with(root, metadata) if spec.listing_with and metadata else spec.listing(root)


@pytest.mark.parametrize("shards", [1, 2])
def test_ingest_from_a_bucket_makes_the_content_of_ingest_from_a_folder(url, access, place, tmp_path, shards):
    data = draw(tmp_path / "data", 40)
    put(url, place, tree(data))
    source, config = resolve(place, access), IngestConfig(shards=shards)
    local = fetch.resolve(SourceConfig(kind="folder", path=str(data)), SPEC.card)
    one = ingest(local, SPEC, (16,), IngestConfig(), tmp_path / "one", workers=1)
    parts = [
        ingest_shard(source, SPEC, (16,), config, tmp_path / str(n), n, workers=1, access=access) for n in range(shards)
    ]
    for part, number in zip(parts, range(shards), strict=True):
        fetched = tree(tmp_path / str(number) / "data" / source.fingerprint[:16])
        assert sum(name.startswith("images/") for name in fetched) == len(part.manifest)
    several = merge_shards(*zip(*[(p.manifest, p.pixels, p.share) for p in parts], strict=True), tmp_path / "all")
    assert [item.digest() for item in several] == [item.digest() for item in one]


def test_a_broken_download_goes_on_where_it_was(url, access, place, tmp_path):
    data = os.urandom(300_000)
    put(url, place, {"big.bin": data})
    client = accessing.connect(access)
    [item] = bucket.items(client, place)
    part = tmp_path / ".big.bin.part"
    part.write_bytes(data[:200_000])
    sizes = []
    original = client.get_object

    def watched(**arguments):
        sizes.append(arguments.get("Range"))
        return original(**arguments)

    client.get_object = watched
    download.download(client, place, item, tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == data and not part.exists()
    assert sizes == ["bytes=200000-"]


def test_content_that_changes_between_listing_and_download_never_arrives(url, access, place, tmp_path):
    put(url, place, FILES)
    source = resolve(place, access)
    root = fetch.fetch(source, CARD, tmp_path, access=access)
    put(url, place, {"images/a.png": b"bbb"})
    with pytest.raises(SourceError, match="changed after the run began"):
        fetch.bring(source, root, ["images/a.png"], tmp_path, access=access)
    with pytest.raises(SourceError, match="changed after the run began"):
        fetch.fetch(source, CARD, tmp_path / "fresh", access=access)


# -- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def plain_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes any key; one on a file system refuses such keys itself."""
    monkeypatch.setattr(server, "GATEWAY", tmp_path / "none")
    with server.server(tmp_path) as address:
        yield address


def test_keys_that_could_leave_the_folder_are_refused(plain_url, access, tmp_path):
    reach = replace(access, endpoint=plain_url)
    hostile = {
        "up": ["../x.png"], "inside": ["a/../../x.png"], "absolute": ["/etc/x.png"], "drive": ["C:\\x.png"],
        "empty": ["a//x.png"], "dot": ["./x.png"], "both": ["a", "a/x.png"],
    }  # fmt: skip
    for name, keys in hostile.items():
        place = s3.Place(server.BUCKET, name)
        for key in keys:
            server.client(plain_url).put_object(Bucket=place.bucket, Key=f"{name}/{key}", Body=b"x")
        with pytest.raises(SourceError, match=r"refused|an object and a folder"):
            resolve(place, reach)


def test_refusals_say_what_to_do_and_nothing_secret(url, access, place, tmp_path, monkeypatch):
    put(url, place, FILES)
    monkeypatch.setattr(accessing, "CONNECT_SECONDS", 1)
    wrong = [replace(access, secret=SECRET), replace(access, key="wrong-key")]
    cases = [
        *((reach, place, CredentialsError) for reach in wrong if server.CHECKS_CREDENTIALS),
        (access, s3.Place("no-such-bucket", ""), SourceError),
        (access, place.below("nothing"), SourceError),
        (access, place.below("nothing.zip"), SourceError),
        (replace(access, endpoint="http://user:hush@127.0.0.1:9"), place, DownloadError),
        (replace(access, endpoint="hush"), place, DownloadError),
    ]
    for reach, where, kind in cases:
        with pytest.raises(kind) as caught:
            resolve(where, reach)
        assert isinstance(caught.value, MedflowError)
        told = caught.value.message + caught.value.hint
        assert not any(word in told for word in (SECRET, server.SECRET, "hush", "wrong-key", "Signature="))
    assert SECRET not in repr(wrong[0]) and server.KEY not in repr(access)


def test_credentials_may_come_from_the_environment(url, place, monkeypatch):
    put(url, place, FILES)
    for name, value in {
        "AWS_ACCESS_KEY_ID": server.KEY, "AWS_SECRET_ACCESS_KEY": server.SECRET, "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": server.REGION,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert resolve(place, s3.AMBIENT).fingerprint


# -- what is sent --------------------------------------------------------------------------------


def stack_on_a_bucket(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of this name with its artifact store at ``s3://medflow/store``, active in this test."""
    stack.use_local()
    client = Client()
    settings = {"path": f"s3://{server.BUCKET}/store", "key": server.KEY, "secret": server.SECRET,
                "client_kwargs": {"endpoint_url": url, "region_name": server.REGION}}  # fmt: skip
    client.create_stack_component(name, "s3", Kind.ARTIFACT_STORE, settings)
    made = client.create_stack(name, components={Kind.ORCHESTRATOR: "default", Kind.ARTIFACT_STORE: name})
    monkeypatch.setenv("ZENML_ACTIVE_STACK_ID", str(made.id))
    monkeypatch.setenv("MEDFLOW_ON", name)


def test_a_folder_is_sent_once_by_content_and_a_cut_upload_goes_on(url, access, place, tmp_path, capsys):
    root = write(tmp_path / "data", FILES)
    uri = s3.upload(root, place, access)
    source = resolve(s3.Place.of(uri), access)
    got = fetch.bring(
        source, fetch.fetch(source, CARD, tmp_path / "to", access=access), FILES, tmp_path / "to", access=access
    )
    assert tree(got) == FILES
    names = server.names(place.prefix)
    marker = f"{s3.Place.of(uri).prefix}.complete"
    facts = json.loads(server.client(url).get_object(Bucket=server.BUCKET, Key=marker)["Body"].read())
    assert marker in names and facts == {"files": 3, "bytes": 10}

    root.rename(tmp_path / "moved")
    assert s3.upload(tmp_path / "moved", place, access) == uri
    assert "is at s3://" in capsys.readouterr().err and server.names(place.prefix) == names

    client = server.client(url)
    client.delete_object(Bucket=server.BUCKET, Key=marker)
    client.delete_object(Bucket=server.BUCKET, Key=s3.Place.of(uri).below("readme.txt").prefix)
    kept = client.head_object(Bucket=server.BUCKET, Key=s3.Place.of(uri).below("images/a.png").prefix)["LastModified"]
    time.sleep(1.1)
    assert s3.upload(tmp_path / "moved", place, access) == uri and server.names(place.prefix) == names
    again = client.head_object(Bucket=server.BUCKET, Key=s3.Place.of(uri).below("images/a.png").prefix)["LastModified"]
    assert again == kept
    assert resolve(s3.Place.of(uri), access).digest() == source.digest()
    (tmp_path / "moved" / "readme.txt").write_text("hullo")
    assert s3.upload(tmp_path / "moved", place, access) != uri


def test_an_archive_is_sent_once_and_what_is_none_is_refused(url, access, place, tmp_path):
    path = zipped(tmp_path / "a.zip", FILES)
    uri = s3.upload(path, place, access)
    assert uri.endswith(".zip") and s3.upload(path, place, access) == uri
    source = resolve(s3.Place.of(uri), access)
    assert tree(fetch.fetch(source, CARD, tmp_path / "to", access=access)) == FILES
    for bad, words in (
        (tmp_path / "none", "does not exist"),
        (write(tmp_path, {"x.txt": b""}) / "x.txt", "no archive"),
    ):
        with pytest.raises(SourceError, match=words):
            s3.upload(bad, place, access)


def test_show_prints_a_bucket_and_shards():
    done = subprocess.run(
        [sys.executable, "-m", "medflow.cli", "show", "phantom", "--source", "s3://images/x/", "ingest.shards=3"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "kind: s3" in done.stdout and "path: s3://images/x" in done.stdout and "shards: 3" in done.stdout


def test_a_metadata_file_may_lie_in_a_bucket(url, access, place, tmp_path):
    put(url, place, {"lesions.csv": b"a,b\n"})
    card = CARD.model_copy(update={"metadata": "lesions.csv"})
    folder = write(tmp_path / "data", FILES)
    config = SourceConfig(kind="folder", path=str(folder), metadata=str(place.below("lesions.csv")))
    source = fetch.resolve(config, card, access=access)
    path = fetch.metadata_file(source, tmp_path / "to", access=access)
    assert path is not None and path.read_bytes() == b"a,b\n"
    put(url, place, {"lesions.csv": b"c,d\n"})
    assert fetch.resolve(config, card, access=access).digest() != source.digest()
    with pytest.raises(SourceError, match="changed after the run began"):
        fetch.metadata_file(source, tmp_path / "fresh", access=access)


def test_what_no_pod_can_see_is_put_into_the_stacks_store(url, tmp_path, monkeypatch):
    stack_on_a_bucket(url, "bucket", monkeypatch)
    table = write(tmp_path, {"lesions.csv": b"a,b\n"}) / "lesions.csv"
    local = SourceConfig(kind="folder", path=str(write(tmp_path / "data", FILES)), metadata=str(table))

    volume = (Volume(claim="images", path=str(tmp_path / "mounted")),)
    steps = dict.fromkeys(("default", "resolve", "ingest", "ingest_shard"), StepPlace(volumes=volume))
    place = PlaceConfig(stack="bucket", steps=steps)

    def sent(source: SourceConfig) -> SourceConfig:
        models = (TimmModel(name="test_resnet", pretrained="none"),)
        return in_reach_of_pods(RunConfig(dataset="phantom", source=source, models=models), place).source

    config = sent(local)
    assert config.kind == "s3" and f"{config.path}".startswith(f"s3://{server.BUCKET}/store/sources/")
    assert f"{config.metadata}".endswith(".csv")
    assert sent(config) == config == sent(local)
    mounted = {"path": f"{tmp_path}/mounted/covid", "metadata": f"{tmp_path}/mounted/lesions.csv"}
    on_volume = SourceConfig(kind="folder", **mounted)
    assert sent(on_volume) == on_volume
    with pytest.raises(ConfigError, match="neither on this machine nor on a volume"):
        sent(SourceConfig(kind="folder", path="/nowhere/covid"))
    card = CARD.model_copy(update={"metadata": "lesions.csv"})
    assert fetch.resolve(config, card, access=store_access.of_store()).uri == config.path

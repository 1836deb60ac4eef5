"""What a model starts from, on this machine or in a bucket: the same bytes are the same training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3 as server
import tiny
from safetensors.torch import save_file
from test_image_text import QUICK, data, encoder_folder, model
from test_s3_source import stack_on_a_bucket

from medflow import model_files, models, s3
from medflow.config.sections import ModelConfig, RunConfig, TextEncoder
from medflow.config.sections.place import PlaceConfig
from medflow.errors import SourceError, WeightsUnavailable
from medflow.model_files import ModelFiles
from medflow.platform import context, store_access
from medflow.platform.kubernetes.upload import in_reach_of_pods
from medflow.records import digest_of, file_digest
from medflow.substitute import with_reachable_encoders
from medflow.tracking import LocalFiles, Silent
from medflow.train import train

TIMM = tiny.TINY["timm"]
PLACE = PlaceConfig(stack="bucket")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server.server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def access(url: str) -> s3.Access:
    return s3.Access(server.KEY, server.SECRET, endpoint=url, region=server.REGION)


@pytest.fixture
def given(tmp_path: Path) -> ModelConfig:
    """A model that reads reports and starts from a file and a folder of this machine."""
    image_text = model()
    weights = tmp_path / "mine" / "resnet.safetensors"
    weights.parent.mkdir()
    backbone = models.build(TIMM, (tiny.LABELS,), tiny.preprocess(), seed=5).backbone
    save_file(models.tensors_of(backbone), weights)
    folder = encoder_folder(tmp_path / "mine" / "bert")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    text = TextEncoder(encoder=str(folder), max_tokens=16)
    return image_text.model_copy(update={"pretrained": str(weights), "text": text})


def put(url: str, path: Path, key: str) -> str:
    server.client(url).put_object(Bucket=server.BUCKET, Key=key, Body=path.read_bytes())
    return f"s3://{server.BUCKET}/{key}"


def test_a_training_from_a_bucket_is_the_one_from_this_machine(url, given, tmp_path, monkeypatch):
    stack_on_a_bucket(url, "models-bucket", monkeypatch)
    config = RunConfig(dataset="phantom", models=(given,))
    sent = in_reach_of_pods(config, PLACE)
    [remote] = sent.models
    digest = file_digest(Path(given.pretrained))
    assert remote.pretrained == f"s3://{server.BUCKET}/store/models/{digest[:32]}/resnet.safetensors"
    assert f"{remote.text.encoder}".endswith("/bert")
    assert in_reach_of_pods(sent, PLACE) == sent == in_reach_of_pods(config, PLACE)
    assert with_reachable_encoders(sent) == sent
    assert not [name for name in server.names("store/models/") if name.endswith(".bin")]
    assert str(tmp_path) not in sent.model_dump_json()

    parts = data(tmp_path / "pixels")
    made = {
        where: train(
            *parts, (tiny.LABELS,), section, QUICK, work=tmp_path / where, tracker=Silent(),
            checkpoints=LocalFiles(tmp_path / where / "checkpoints"), access=store_access.of_store(),
        ).card
        for where, section in (("here", given), ("there", remote))
    }  # fmt: skip
    here, there = made["here"], made["there"]
    assert here.weights_from == there.weights_from
    assert there.weights_from.startswith(f"file resnet.safetensors, sha256:{digest}; text: bert, sha256:")
    assert here.weights_digest == there.weights_digest and here.text == there.text
    assert str(tmp_path) not in there.model_dump_json()
    assert here.starts == there.starts == ("resnet.safetensors", "bert")
    assert "resnet.safetensors and bert: which images or reports that was trained on" in there.notes[0]


def test_the_settings_of_a_yaml_may_name_a_bucket(url, access, given, tmp_path):
    uri = put(url, Path(given.pretrained), "somebody/resnet.safetensors")
    for path in Path(given.text.encoder).iterdir():
        folder = put(url, path, f"somebody/clinical-bert/{path.name}").rpartition("/")[0]
    remote = given.model_copy(
        update={"pretrained": uri, "text": given.text.model_copy(update={"encoder": f"{folder}/"})}
    )
    assert in_reach_of_pods(RunConfig(dataset="phantom", models=(remote,)), PLACE).models == (remote,)
    files = model_files.bring(remote, tmp_path / "to", access)
    assert files.weights and files.weights.name == "resnet.safetensors"
    assert file_digest(files.weights) == file_digest(Path(given.pretrained))
    assert files.encoder and sorted(path.name for path in files.encoder.iterdir()) == [
        "config.json", "model.safetensors", "vocab.txt"
    ]  # fmt: skip
    before = model_files.named([remote], access)
    put(url, Path(given.text.encoder) / "vocab.txt", "somebody/clinical-bert/added_tokens.json")
    after = model_files.named([remote], access)
    assert [name for name, _ in after] == ["resnet.safetensors", "clinical-bert"]
    assert after[0] == before[0] and after[1] != before[1]


def test_what_is_not_there_is_told_before_anything_runs(access, given):
    absent = given.model_copy(update={"pretrained": "/nowhere/resnet.safetensors"})
    with pytest.raises(WeightsUnavailable, match=r"'/nowhere/resnet\.safetensors', which is no file"):
        in_reach_of_pods(RunConfig(dataset="phantom", models=(absent,)), PLACE)
    for uri in (f"s3://{server.BUCKET}/none.safetensors", "s3://no-such-bucket/x.safetensors"):
        with pytest.raises(SourceError, match="does not exist"):
            model_files.named([TIMM.model_copy(update={"pretrained": uri})], access)


def test_files_that_changed_since_the_run_was_defined_are_refused(given, monkeypatch):
    before = model_files.named([given])
    monkeypatch.setenv(context.FILES_VARIABLE, digest_of(before))
    context.refuse_changed(before)
    with Path(given.pretrained).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(SourceError, match=r"changed after the run was defined: resnet\.safetensors, "):
        context.refuse_changed(model_files.named([given]))
    context.refuse_changed(())


def test_what_the_hub_publishes_names_no_file(tmp_path):
    for section in (*tiny.TINY.values(), model(), TIMM.model_copy(update={"pretrained": "imagenet"})):
        assert model_files.named([section]) == () and model_files.bring(section, tmp_path) == ModelFiles()
    assert np.all([model_files.is_read(name) for name in ("config.json", "model-00001-of-2.safetensors", "vocab.txt")])
    assert not any(model_files.is_read(name) for name in ("pytorch_model.bin", "onnx/config.json", "README.md"))

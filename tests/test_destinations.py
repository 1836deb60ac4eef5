"""Places and stacks: every shipped one reads, what cannot be meant is refused by name, steps complete themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import steps
from medflow.config.destinations import VARIABLE, read_place, read_stack
from medflow.config.places import stacks, targets
from medflow.config.reading import load
from medflow.config.sections.place import STEPS
from medflow.errors import ConfigError
from medflow.platform.runs import uses

STACK = """
server: http://zenml.example
cluster: {context: test}
image: registry.example:5000/medflow-step:abc
registry: registry.example:5000
store: {uri: s3://bucket}
mlflow: {uri: http://mlflow.example}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", targets())
def test_every_shipped_place_reads(name):
    assert read_place(name).stack


@pytest.mark.parametrize("path", sorted(stacks().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_stack_reads_and_holds_no_address(path):
    names = set(VARIABLE.findall(path.read_text()))
    values = dict.fromkeys(names, "http://one.example") | {"MEDFLOW_IMAGE": "registry.example/medflow-step:1"}
    assert read_stack(path.stem, values).server == "http://one.example"
    assert not re.search(r"https?://", path.read_text())
    with pytest.raises(ConfigError, match="which is not set"):
        read_stack(path.stem, {})


def test_a_named_step_completes_itself_from_default(tmp_path):
    place = read_place(
        written(tmp_path, "stack: a\nsteps:\n  default: {cpu: 0.25, retries: 1}\n  train: {memory: 8Gi}\n")
    )
    train = place.of_step("train_resnet18", "train")
    assert (train.cpu, train.retries, train.memory) == (0.25, 1, "8Gi")
    assert place.of_step("select", "select").memory == "2Gi"


def test_one_use_of_a_step_goes_before_the_step(tmp_path):
    place = read_place(written(tmp_path, "stack: a\nsteps: {default: {}, train: {gpu: 1}, train_big: {gpu: 4}}\n"))
    assert [place.of_step(use, "train").gpu for use in ("train_big", "train_small")] == [4, 1]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("stack: a\nsteps: {default: {}, train: {memroy: 8Gi}}", r"steps\.train\.memroy", "steps.train.memory"),
        ("stack: a\nsteps: {default: {memory: 8 GB}}", r"steps\.default\.memory", "Bytes that are reserved"),
        ("stack: a\nsteps: {default: {timeout: 0}}", r"timeout: expected a number of at least 30", "Seconds"),
        ("stakc: a", "stakc", "did you mean stack"),
        ("stack: a\nsteps: {train: {gpu: 1.5}}", "gpu", "GPUs"),
    ],
)
def test_what_a_place_cannot_mean_is_refused_by_name(tmp_path, text, message, hint):
    with pytest.raises(ConfigError, match=message) as refused:
        read_place(written(tmp_path, text))
    assert hint in refused.value.hint


def test_the_steps_that_a_place_knows_are_those_there_are():
    assert set(STEPS) == {path.stem for path in Path(steps.__file__).parent.glob("*.py")} - {"__init__"}


def test_every_use_of_a_step_may_have_a_place_of_its_own(tmp_path):
    models = "models=[{kind: timm, name: resnet18}, {kind: monai_unet, size: 32}]"
    config = load("phantom", [models, "ingest.shards=2", "prune.enabled=true", "quantize.enabled=true"])
    found = uses(config)
    assert {"train_resnet18", "export_pruned_onnx", "ingest_shard_1"} <= found.keys()
    text = "".join(f"  {use}: {{gpu: 1}}\n" for use in dict.fromkeys([*found, *found.values()]))
    place = read_place(written(tmp_path, f"stack: a\nsteps:\n  default: {{}}\n{text}"))
    assert all(asked.gpu for asked in place.of_steps(found).values())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("trian", "train"),
        ("defualt", "default"),
        ("ingest_shrad", "ingest_shard"),
        ("evaluate_incumbnet", "evaluate_incumbent"),
        ("quantise", "quantize"),
    ],
)
def test_a_place_for_no_step_is_refused_with_its_line_and_the_step_that_is_meant(tmp_path, name, meant):
    path = written(tmp_path, f"stack: a\nsteps:\n  default: {{}}\n  {name}: {{gpu: 1}}\n")
    with pytest.raises(ConfigError, match=rf"mine\.yaml line 4: steps\.{name}: expected a setting's name") as refused:
        read_place(path)
    assert refused.value.hint.startswith(f"did you mean steps.{meant}? known there are default, choose, ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("medflow-step:abc", "medflow-step", "image"),
        ("s3://bucket", "/tmp/store", "store.uri"),
        ("context: test", "contxt: test", "contxt"),
        ("s3://bucket}", "s3://bucket, endpoint: minio.example:9000}", "store.endpoint"),
    ],
)
def test_what_a_stack_cannot_mean_is_refused_by_name(tmp_path, old, new, message):
    assert read_stack(written(tmp_path, STACK)).cluster.namespace == "medflow"
    with pytest.raises(ConfigError, match=message):
        read_stack(written(tmp_path, STACK.replace(old, new)))


def test_an_unknown_place_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="kubernetes or local") as refused:
        read_place("kubernets")
    assert "'kubernetes'" in refused.value.hint

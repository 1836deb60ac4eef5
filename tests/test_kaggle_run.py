"""A whole run from Kaggle's door to a packaged model, by the real kagglehub against a loopback server."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kaggle_server import ENVIRONMENT, TOKEN, KaggleServer, serving

from medflow import datasets
from medflow.config.reading import load
from medflow.platform import runs, stack
from medflow.platform.outcomes import RunOutcome
from medflow.records import Bundle, Generated, Manifest, Source
from medflow.twins import write_twin

NAME = "chest_xray_pneumonia"
SMALL = (
    "source.kind=kaggle",
    "models=[{kind: timm, name: test_resnet, pretrained: none, size: 32, hidden: [8]}]",
    "train.epochs=1",
    "train.batch_size=16",
    "evaluate.resamples=100",
    "promote.resamples=100",
    "promote.floors=[]",
    "prune.enabled=false",
    "quantize.enabled=false",
)


def zipped(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return packed.getvalue()


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """Kaggle with the twin as versions 1 and 4, and a user who is known there."""
    for name, value in {**ENVIRONMENT, "KAGGLE_API_TOKEN": TOKEN, "KAGGLE_CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    archives = {}
    for version in (1, 4):
        write_twin(NAME, tmp_path / f"twin{version}", Generated(images=72, seed=version))
        archives[version] = zipped(tmp_path / f"twin{version}")
    handle = datasets.get(NAME).card.kaggle
    assert handle
    with serving() as server:
        server.publish(handle, archives)
        yield server


def output(outcome: RunOutcome, step: str, name: str) -> object:
    return stack.client().get_pipeline_run(outcome.run_id).steps[step].outputs[name][0].load()


@pytest.mark.slow
def test_latest_is_recorded_by_its_number_and_a_number_pins(kaggle: KaggleServer) -> None:
    latest = runs.run(load(NAME, SMALL))
    assert latest.status == "completed"
    pinned = runs.run(load(NAME, (*SMALL, "source.version='1'")))
    for outcome, version in ((latest, "4"), (pinned, "1")):
        source, manifest = output(outcome, "resolve", "source"), output(outcome, "ingest", "manifest")
        chosen = output(outcome, "choose", "chosen")
        assert isinstance(source, Source) and isinstance(manifest, Manifest) and isinstance(chosen, Bundle)
        assert source.kind == "kaggle" and source.version == version
        assert manifest.source and manifest.source.version == version
        assert chosen.card.source_version == version
    assert latest.model != pinned.model

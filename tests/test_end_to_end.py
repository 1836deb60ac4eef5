"""From images to an answer over HTTP by the commands alone, for what the demonstration does not have.

A model that reads reports, and a dataset that `medflow new` declares.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "train.epochs=1", "train.batch_size=16", "evaluate.resamples=100", "promote.resamples=100", "promote.floors=[]",
    "prune.enabled=false", "quantize.enabled=false",
)  # fmt: skip


def medflow(folder: Path, *words: str) -> str:
    """Standard output of one command, which must end well."""
    command = [sys.executable, "-m", "medflow.cli", *words]
    done = subprocess.run(command, cwd=folder, env=surroundings(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def surroundings() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def served(model: str, folder: Path) -> Iterator[str]:
    """The address of `medflow serve`, which is stopped at the end."""
    command = [sys.executable, "-m", "medflow.cli", "serve", model, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=surroundings(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"at (http://\S+)", line)
            assert found, line
            yield found[1]
        finally:
            process.terminate()


def ask(url: str, image: Path, **fields: str) -> dict:
    answer = httpx.post(f"{url}/predict", files={"image": image.read_bytes()}, data=fields, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
def test_a_model_that_reads_reports_is_served_with_them(tmp_path: Path) -> None:
    small = ("source.images=96", "model.size=32", "model.text.vocabulary=100", "model.text.max_tokens=24")
    told = json.loads(medflow(tmp_path, "run", "phantom_reports", "--json", *SMALL, *small))
    scan = tmp_path / "scan.png"
    Image.linear_gradient("L").save(scan)
    with served(told["model"], tmp_path) as url:
        read, unread = ask(url, scan, text="a bright round mass in the left lung"), ask(url, scan)
    assert (read["report_read"], unread["report_read"]) == (True, False)
    assert read["probabilities"] != unread["probabilities"]


@pytest.mark.slow
def test_images_of_ones_own_become_a_model_that_answers(tmp_path: Path) -> None:
    for place in range(72):
        path = tmp_path / "scans" / ("bright" if place % 2 else "dark") / f"p{place // 4}_{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = np.random.default_rng(place).normal(170 if place % 2 else 85, 40, (64, 64))
        Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)).save(path)
    medflow(tmp_path, "new", "mine", "--images", "scans")
    small = ("models=[{kind: timm, name: test_resnet, size: 32, pretrained: none, stats: unit}]",)
    told = json.loads(medflow(tmp_path, "run", "mine", "--json", *SMALL, *small))
    assert told["model"] == "mine@1"
    scan = tmp_path / "scans" / "bright" / "p0_1.png"
    medflow(tmp_path, "predict", "mine", str(scan), "--overlays", "--out", "out")
    [row] = csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines())
    assert row["decision"] in ("bright", "dark") and (tmp_path / "out" / row["overlay"]).is_file()
    with served("mine", tmp_path) as url:
        answer = ask(url, scan)
    assert answer["decision"] == row["decision"] and answer["mask"] is None
    for label, value in answer["probabilities"].items():
        assert value == pytest.approx(next(float(row[name]) for name in row if name.endswith(f".{label}")), abs=1e-4)
    judged = json.loads(medflow(tmp_path, "evaluate", "mine", "--source", "scans", "--to", "judged", "--json"))
    assert judged["judged"] == max(score["n"] for score in told["metrics"]), "its own test rows are left, and no other"

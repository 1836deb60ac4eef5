"""How much faster a pruned graph is than the same network unpruned, one thread, batch 1, side by side in one run."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medflow.config.sections import ExportConfig, PruneConfig, Stage, TimmModel, TrainConfig
from medflow.export import export_onnx
from medflow.graph import Graph
from medflow.prune import prune
from medflow.tracking import LocalFiles, Silent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import squares

ROUNDS = 30


def test_pruned_against_unpruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val, pixels = squares.data(tmp_path / "data", rows=8, size=96)
    model = TimmModel(name="resnet18", pretrained="none", size=96, stats="unit")
    bundle = squares.torch_bundle(tmp_path, model, val, pixels)
    config = PruneConfig(ratio=0.3, stage=Stage(epochs=1))
    pruned = prune(
        bundle, val, val, pixels, config, TrainConfig(batch_size=4),
        work=tmp_path / "pruned", tracker=Silent(), checkpoints=LocalFiles(tmp_path / "checkpoints"),
    )  # fmt: skip
    before = Graph(export_onnx(bundle, val, pixels, ExportConfig(), work=tmp_path / "before"), threads=1)
    after = Graph(export_onnx(pruned, val, pixels, ExportConfig(), work=tmp_path / "after"), threads=1)
    ratios = [_seconds(before) / _seconds(after) for _ in range(ROUNDS)]
    with capsys.disabled():
        low, high = min(ratios), max(ratios)
        print(f"\npruned 30 %, resnet18 at 96: {statistics.median(ratios):.2f} times ({low:.2f} to {high:.2f})")
    assert statistics.median(ratios) > 1.0


def _seconds(graph: Graph) -> float:
    image = np.zeros((1, 96, 96, 1), dtype=np.uint8)
    graph(image)
    start = time.perf_counter()
    for _ in range(5):
        graph(image)
    return time.perf_counter() - start

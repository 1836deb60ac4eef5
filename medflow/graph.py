"""Runs the ONNX graph of a bundle: uint8 pixels in, float32 logits by head out. No torch.

The service's way of scoring: ``medflow.scoring`` opens torch bundles too, and so reaches torch.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors import SafetensorError
from safetensors.numpy import load_file

from medflow.decisions import probabilities
from medflow.errors import ArtifactError, ModelError
from medflow.records import Bundle, HeadSpec
from medflow.text import ATTENTION_MASK, INPUT_IDS, Tokenizer

INPUT = "images"
GOLDEN_IMAGES, GOLDEN_REPORTS = "image", "reports"
#: Largest difference of probabilities between a golden set and its reproduction. Integer kernels
#: round differently from one processor to the next (VNNI or not), float ones hardly.
GOLDEN_TOLERANCE = {"float": 1e-3, "int8": 5e-2}


class Graph:
    """A loaded ONNX bundle. Calling it is thread-safe.

    ``threads`` is the size of the pool inside one operator; None takes every core this process may use.
    Raises ModelError where the file is no graph, or takes or gives something else than its card says.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self.card = bundle.card
        self._session = _session(bundle.weights, threads or cores())
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._tokenizer = Tokenizer.of(bundle)
        self._check_signature()

    def __call__(self, images: np.ndarray, reports: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        """Logits float32 by head: (n, labels), or (n, 1, height, width) for a mask; ``images`` uint8 (n, h, w, c).

        ``reports`` are the images', for a graph that reads them; without, no image has one.
        """
        values = self._session.run(self._outputs, self.inputs(images, reports))
        return dict(zip(self._outputs, values, strict=True))

    def inputs(self, images: np.ndarray, reports: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        """What the session takes, by name."""
        given = {INPUT: np.ascontiguousarray(images)}
        if self._tokenizer is not None:
            given |= self._tokenizer([None] * len(images) if reports is None else reports).named()
        return given

    def _check_signature(self) -> None:
        spec = self.card.preprocess.pixels
        wanted = (INPUT, "tensor(uint8)", [spec.height, spec.width, spec.channels])
        tokens = [] if self.card.text is None else [self.card.text.max_tokens]
        read = [(name, "tensor(int64)", tokens) for name in (INPUT_IDS, ATTENTION_MASK) if tokens]
        found = [(item.name, item.type, list(item.shape[1:])) for item in self._session.get_inputs()]
        heads = {head.name for head in self.card.heads}
        if found != [wanted, *read] or set(self._outputs) != heads:
            raise ModelError(
                f"the graph of {self.card.name} takes {found} and gives {sorted(self._outputs)}, "
                f"its card says {[wanted, *read]} and {sorted(heads)}",
                hint="the graph and card.json are not from the same export; run the export again",
            )


def golden_difference(bundle: Bundle, graph: Graph) -> float:
    """Largest absolute difference of probabilities (0 to 1) between the golden set and ``graph``'s own answer.

    For a mask the mean over pixels of each image counts, since single pixels on an edge say nothing.
    Raises ArtifactError where the golden set cannot be read.
    """
    golden = read_golden(bundle)
    found = graph(golden[GOLDEN_IMAGES], golden_reports(golden))
    heads = bundle.card.heads
    return difference(found, {head.name: golden[head.name] for head in heads}, bundle)


def difference(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], bundle: Bundle) -> float:
    """Largest difference of probabilities between two sets of logits; see ``golden_difference``."""
    card = bundle.card
    first = probabilities(found, card.heads, card.temperatures)
    second = probabilities(expected, card.heads, card.temperatures)
    return max(_head_difference(head, first[head.name], second[head.name]) for head in card.heads)


def check_golden(bundle: Bundle, graph: Graph) -> None:
    """Raises ArtifactError where ``graph`` does not reproduce the bundle's golden set."""
    found = golden_difference(bundle, graph)
    allowed = GOLDEN_TOLERANCE["int8" if bundle.card.variant.endswith("int8") else "float"]
    if not found <= allowed:
        raise ArtifactError(
            f"the golden set is not reproduced: probabilities differ by {found:.2g}, allowed {allowed:g}",
            hint="the graph or its runtime differs from what was packaged; build the package again",
        )


def read_golden(bundle: Bundle) -> dict[str, np.ndarray]:
    """``image`` uint8 (n, h, w, c) and the logits of every head. Raises ArtifactError."""
    try:
        golden = load_file(bundle.golden)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"the golden set of {bundle.card.name} cannot be read: {error}", hint="run the export again"
        ) from error
    read = {GOLDEN_REPORTS} if bundle.card.text else set()
    missing = {GOLDEN_IMAGES, *read, *(head.name for head in bundle.card.heads)} - set(golden)
    if missing:
        raise ArtifactError(
            f"the golden set of {bundle.card.name} lacks {', '.join(sorted(missing))}", hint="run the export again"
        )
    return golden


def golden_reports(golden: Mapping[str, np.ndarray]) -> list[str | None] | None:
    """The reports of a golden set, or None where its model reads none."""
    stored = golden.get(GOLDEN_REPORTS)
    return None if stored is None else json.loads(stored.tobytes())


def cores() -> int:
    """Processors this process may use: its affinity, and the quota of its control group (a pod's CPU limit)."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, _quota(allowed)))


def _quota(otherwise: int) -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control group, or "max"
        return otherwise


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ModelError(
            f"{path.name} is not a graph that onnxruntime {onnxruntime.__version__} can run: {_first_line(error)}",
            hint="run the export again, or check the stored bundle with `medflow verify`",
        ) from error


def _head_difference(head: HeadSpec, first: np.ndarray, second: np.ndarray) -> float:
    gap = np.abs(first.astype(np.float64) - second)
    if head.kind == "mask":
        gap = gap.reshape(len(gap), -1).mean(axis=1)
    return float(gap.max(initial=0.0))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

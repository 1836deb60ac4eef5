"""An ONNX bundle with 8-bit weights and activations: ONNX Runtime's static QDQ, calibrated on training rows.

Activations are unsigned, weights signed and per channel: the one scheme that is faster than float on every
architecture measured. What lies before the first weighted layer (the normalization of uint8 pixels) stays in
float and exact, and so do the layers that give the outputs, which cost nothing and decide everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from medflow.bundle import finish
from medflow.config.sections import QuantizeConfig
from medflow.errors import DataError, ModelError
from medflow.graph import INPUT, Graph
from medflow.parity import measure
from medflow.progress import say
from medflow.records import Bundle, Manifest, Pixels
from medflow.scoring import open_rows, open_scorer

VARIANTS = {"onnx": "int8", "pruned_onnx": "pruned_int8"}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: All that ONNX Runtime can quantize but norms: their few weights cost nothing in float, and a lot in 8 bits.
QUANTIZABLE = tuple(
    sorted({*QDQRegistry, *QLinearOpsRegistry} - {"LayerNormalization", "InstanceNormalization", "BatchNormalization"})
)
#: Below this signal-to-noise ratio of the logits, more of the graph is left in float.
ENOUGH_DB = 20.0
#: A slower way must be better by this much.
WORTH_DB = 3.0
BATCH = 8
SEED = 0
CPUINFO = Path("/proc/cpuinfo")
#: Inputs of a graph by name, a few rows each.
Feeds = list[dict[str, np.ndarray]]


def quantize(
    bundle: Bundle, train: Manifest, val: Manifest, pixels: Pixels, config: QuantizeConfig, *, work: Path
) -> Bundle:
    """The bundle in 8 bits, below ``work``; parity and what stays in float are in its card.

    A variant that loses too much is reported, not refused: ``choose`` judges it. Raises ModelError where no way of
    quantizing gives a graph that runs.
    """
    if bundle.card.variant not in VARIANTS:
        raise ModelError(
            f"{bundle.card.name} ({bundle.card.variant}) cannot be quantized, expected one of {', '.join(VARIANTS)}",
            hint="export it to ONNX first",
        )
    folder = work / "quantize"
    folder.mkdir(parents=True, exist_ok=True)
    bundle.share_with(folder)
    card = bundle.card.model_copy(update={"variant": VARIANTS[bundle.card.variant]})
    sample = _calibration_rows(bundle, train, pixels, config.calibration_images)
    reduce_range = _reduce_range(config.reduce_range)
    best = _best(bundle, Bundle(root=folder, card=card), sample, reduce_range)
    say(f"quantized {card.name}: {best.snr:.1f} dB, {best.way.name}")
    draft = Bundle(root=folder, card=card)
    best.graph.replace(draft.weights)
    parity = measure(open_scorer(bundle), Graph(draft), bundle.card, val, pixels)
    notes = (*card.notes, *_notes(best, len(sample), reduce_range))
    card = card.model_copy(update={"parity": parity, "notes": notes})
    return finish(work / card.variant, card, draft.weights, val, pixels)


# -- ways of quantizing --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """One choice of what is quantized, and what it leaves in float."""

    name: str
    types: tuple[str, ...]
    """Operators to quantize."""
    excluded: tuple[str, ...]
    """Names of nodes left in float."""


@dataclass(frozen=True)
class _Tried:
    way: _Way
    graph: Path
    snr: float


def _best(bundle: Bundle, draft: Bundle, sample: Sample, reduce_range: bool) -> _Tried:
    """The first way that is good enough, or else the best of all. Raises ModelError where none runs."""
    prepared = draft.root / "prepared.onnx"
    tried: list[_Tried] = []
    failures: list[str] = []
    graph = Graph(bundle)
    feeds = [graph.inputs(*part) for part in sample.parts()]
    expected = _logits(graph, sample)
    try:
        quant_pre_process(bundle.weights, prepared, skip_symbolic_shape=True)
        ways = list(_ways(onnx.load(prepared)))
    except Exception as error:  # onnx and onnxruntime share no base class of errors
        ways, failures = [], [_first_line(error)]
    for number, way in enumerate(ways):
        target = draft.root / str(number) / Bundle.ONNX
        target.parent.mkdir(exist_ok=True)
        try:
            bundle.share_with(target.parent)
            _write(prepared, bundle.weights, target, feeds, way, reduce_range)
            found = _logits(Graph(Bundle(root=target.parent, card=draft.card)), sample)
        except Exception as error:
            failures.append(f"{way.name}: {_first_line(error)}")
            continue
        tried.append(_Tried(way, target, signal_to_noise(expected, found)))
        if tried[-1].snr >= ENOUGH_DB:
            break
    if not tried:
        raise ModelError(
            f"{bundle.card.name} cannot be quantized: {'; '.join(failures)}", hint="set `quantize.enabled=false`"
        )
    best = tried[0]
    for item in tried[1:]:
        best = item if item.snr >= best.snr + WORTH_DB else best
    return best


def _ways(graph: onnx.ModelProto) -> Iterator[_Way]:
    """From the fastest to the most careful."""
    always = (*_before_weights(graph), *_output_layers(graph))
    yield _Way("all operators but norms", QUANTIZABLE, always)
    yield _Way("weighted operators only", WEIGHTED, always)
    first = next((node.name for node in graph.graph.node if node.op_type in WEIGHTED), "")
    yield _Way("weighted operators but the first", WEIGHTED, (*always, first))


def _write(prepared: Path, source: Path, target: Path, feeds: Feeds, way: _Way, reduce_range: bool) -> None:
    quantize_static(
        prepared,
        target,
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(way.types),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(way.excluded),
    )
    graph = onnx.load(target)
    props = {item.key: item.value for item in onnx.load(source, load_external_data=False).metadata_props}
    del graph.metadata_props[:]  # the tools' own notes
    onnx.helper.set_model_props(graph, props)
    onnx.save(graph, target)


def _before_weights(graph: onnx.ModelProto) -> list[str]:
    """Nodes that the pixels pass before any weighted layer: the normalization."""
    reached, names = {INPUT}, []
    for node in graph.graph.node:  # in topological order, as ONNX demands
        if node.op_type not in WEIGHTED and reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


def _output_layers(graph: onnx.ModelProto) -> list[str]:
    """The weighted layer that gives each output, and whatever follows it."""
    made_by = {name: node for node in graph.graph.node for name in node.output}
    names = []
    for output in graph.graph.output:
        node = made_by.get(output.name)
        while node is not None:
            names.append(node.name)
            node = None if node.op_type in WEIGHTED else made_by.get(node.input[0])
    return names


# -- measuring -----------------------------------------------------------------------------------


def signal_to_noise(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """Ratio of logits to their error in dB, of the worst head; logits are centred over images first."""
    ratios = []
    for name, values in expected.items():
        signal = values.astype(np.float64)
        power = np.square(signal - signal.mean(axis=0)).mean()
        noise = np.square(found[name].astype(np.float64) - signal).mean()
        ratios.append(10 * np.log10(max(float(power), 1e-20) / max(float(noise), 1e-20)))
    return min(ratios)


@dataclass(frozen=True)
class Sample:
    """Training rows that calibrate."""

    images: np.ndarray
    """uint8 (n, height, width, channels)."""
    reports: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.images)

    def parts(self) -> Iterator[tuple[np.ndarray, tuple[str | None, ...]]]:
        for start in range(0, len(self), BATCH):
            yield self.images[start : start + BATCH], self.reports[start : start + BATCH]


def _logits(graph: Graph, sample: Sample) -> dict[str, np.ndarray]:
    parts = [graph(*part) for part in sample.parts()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Reader(CalibrationDataReader):
    """Feeds the calibrator, a few images at a time."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _calibration_rows(bundle: Bundle, train: Manifest, pixels: Pixels, count: int) -> Sample:
    """Training rows drawn without replacement, always the same ones."""
    if not len(train):
        raise DataError("there are no training rows to calibrate on", hint="give `split.train` a larger share")
    rows = np.random.default_rng([SEED, len(train)]).permutation(len(train))[:count]
    drawn = train.take(np.sort(rows))
    store = open_rows(drawn, pixels, bundle.card.preprocess.pixels)
    return Sample(images=store.images(drawn.pixel_rows()), reports=drawn.reports())


# -- the processor -------------------------------------------------------------------------------


def _reduce_range(setting: str) -> bool:
    return setting == "on" or (setting == "auto" and not has_vnni())


def has_vnni() -> bool:
    """Whether this processor multiplies 8-bit numbers without saturating at 16 bits; False where nobody says."""
    try:
        flags = CPUINFO.read_text().split()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _notes(best: _Tried, images: int, reduce_range: bool) -> tuple[str, ...]:
    bits = "7-bit weights" if reduce_range else "8-bit weights"
    return (
        f"static INT8, {bits}, {best.way.name}, calibrated on {images} training images, {best.snr:.1f} dB",
        f"in float: {', '.join(best.way.excluded)}",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

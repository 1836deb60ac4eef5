"""One way to score images with any bundle, torch or ONNX: uint8 pixels in, float32 logits out.

torch is imported only where a torch bundle is opened, so that an ONNX bundle can be scored without it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medflow.errors import ArtifactError, DataError
from medflow.records import Bundle, HeadSpec, Manifest, PixelSpec, file_digest
from medflow.text import Tokenizer

if TYPE_CHECKING:
    import torch

    from medflow.pixels import Store
    from medflow.records import Pixels


class Scorer(Protocol):
    """uint8 (n, height, width, channels) → logits by head, float32 (n, labels); (n, 1, height, width) for a mask.

    ``reports`` are the images', None for one without; a model that reads none leaves them unread, and where they are
    not given no image has one.
    """

    def __call__(self, images: np.ndarray, reports: Sequence[str | None] | None = None) -> dict[str, np.ndarray]: ...


def open_scorer(bundle: Bundle, *, threads: int | None = None, device: str = "auto") -> Scorer:
    """A scorer for a bundle: graphs run on the CPU, torch networks on ``device`` (``auto``: a GPU where there is one).

    ``threads`` bounds ONNX Runtime's threads; None takes every core this process may use. Raises ArtifactError
    where the weights are absent or are not those of the card, ModelError where the graph does not fit the card.
    """
    if not bundle.weights.exists():
        raise ArtifactError(
            f"bundle {bundle.card.name} has no {bundle.weights.name} in {bundle.root}",
            hint="the bundle is incomplete: run the step that made it again",
        )
    if file_digest(bundle.weights) != bundle.card.weights_digest:
        raise ArtifactError(
            f"{bundle.weights} does not have the sha256 that its card states",
            hint="the file was changed or cut short: run the step that made it again",
        )
    return OnnxScorer(bundle, threads) if bundle.is_onnx else TorchScorer(bundle, device)


# -- both kinds ----------------------------------------------------------------------------------


class OnnxScorer:
    """A bundle's graph under ONNX Runtime; see ``medflow.graph`` for how it is run and what is refused."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        from medflow.graph import Graph

        self._spec = bundle.card.preprocess.pixels
        self._graph = Graph(bundle, threads=threads)

    def __call__(self, images: np.ndarray, reports: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        return self._graph(_checked(images, self._spec), reports)


class TorchScorer:
    """A bundle's network in torch, in evaluation mode, without gradients, in 32 bits."""

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        import torch

        from medflow import models

        self._spec = bundle.card.preprocess.pixels
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._network: torch.nn.Module = models.load(bundle).to(self._device).eval()
        self._tokenizer = Tokenizer.of(bundle)

    def __call__(self, images: np.ndarray, reports: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        import torch

        # A copy: stores are read-only memory maps, which torch cannot wrap without a warning.
        given = [np.array(_checked(images, self._spec))]
        if self._tokenizer is not None:
            given += self._tokenizer([None] * len(images) if reports is None else reports).named().values()
        tensors = [torch.from_numpy(values).to(self._device) for values in given]
        with torch.inference_mode():
            return {name: value.float().cpu().numpy() for name, value in self._network(*tensors).items()}


# -- rows of a manifest --------------------------------------------------------------------------


def open_rows(rows: Manifest, pixels: Pixels, spec: PixelSpec) -> Store:
    """The store whose images a bundle with ``spec`` reads. Raises DataError where there is none like it."""
    from medflow.pixels import open_store

    stored = [store.spec for store in pixels.index.stores]
    if spec not in stored:
        raise DataError(
            f"the images of {rows.card.name} are stored as {_in_words(*stored)}; the model reads {_in_words(spec)}",
            hint=f"add {spec.height} to ingest.extra_sizes, or set ingest.fit as it was for the model, and run again",
        )
    return open_store(pixels, spec.height)


def _in_words(*specs: PixelSpec) -> str:
    return ", ".join(f"{spec.height}x{spec.width}x{spec.channels} ({spec.fit})" for spec in specs) or "nothing"


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover ``count`` rows in order, ``size`` at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def score(
    scorer: Scorer, rows: Manifest, store: Store, *, batch_size: int = 32
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Logits of every row, batch by batch in order, so that mask logits never lie in memory all at once."""
    pixel_rows, reports = rows.pixel_rows(), rows.reports()
    for part in batches(len(rows), batch_size):
        yield part, scorer(store.images(pixel_rows[part]), reports[part])


def label_logits(
    scorer: Scorer, rows: Manifest, store: Store, heads: tuple[HeadSpec, ...], *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Logits of the label heads over all rows, float32 (n, labels) each. Mask heads are left out."""
    parts: dict[str, list[np.ndarray]] = {head.name: [] for head in heads if head.kind != "mask"}
    for _, logits in score(scorer, rows, store, batch_size=batch_size):
        for name, kept in parts.items():
            kept.append(logits[name])
    return {name: np.concatenate(kept) for name, kept in parts.items()}


# -- latency -------------------------------------------------------------------------------------


def latency_ms(bundle: Bundle, *, repeats: int = 15, warm_up: int = 3) -> float:
    """Median milliseconds of one image on one thread of this machine's CPU, after a warm-up."""
    spec = bundle.card.preprocess.pixels
    image = np.full((1, spec.height, spec.width, spec.channels), 128, dtype=np.uint8)
    with _one_thread(bundle):
        scorer = open_scorer(bundle, threads=1, device="cpu")
        for _ in range(warm_up):
            scorer(image)
        return statistics.median(_milliseconds(scorer, image) for _ in range(repeats))


def _milliseconds(scorer: Scorer, image: np.ndarray) -> float:
    start = time.perf_counter()
    scorer(image)
    return (time.perf_counter() - start) * 1000.0


@contextmanager
def _one_thread(bundle: Bundle) -> Iterator[None]:
    """Bounds torch to one thread for a while; ONNX Runtime's threads belong to its session."""
    if bundle.is_onnx:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _checked(images: np.ndarray, spec: PixelSpec) -> np.ndarray:
    shape = (spec.height, spec.width, spec.channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise DataError(
            f"images are {images.dtype} {images.shape}, expected uint8 (n, {', '.join(map(str, shape))})",
            hint="bring raw bytes to pixels with medflow.preprocess.to_pixels and the model's own card",
        )
    return images

"""A bundle applied to image files: a table of answers and overlays to look at.

Bytes become pixels as in training and serving (``preprocess.to_pixels``), and torch and ONNX bundles go through
the same scorer, so they give the same answers.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field

from medflow.decisions import decide, probabilities
from medflow.errors import DataError, ImageError
from medflow.preprocess import to_pixels
from medflow.progress import track
from medflow.records import Bundle, HeadSpec, ModelCard, Record
from medflow.scoring import Scorer, open_scorer

TABLE = "predictions.csv"
OVERLAYS = "overlays"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm", ".jp2")
BATCH = 8
#: Red with this share of opacity marks the mask.
OPACITY = 0.4


class Prediction(Record):
    """One image's answer. ``error`` says why there is none, and everything else is then empty."""

    path: str
    sha256: str = ""
    probabilities: Mapping[str, float] = Field(default_factory=dict)
    """``<head>.<label>`` → 0 to 1."""
    decision: str = ""
    """The class, or the labels at or above their thresholds, joined by ``|``."""
    mask_fraction: float | None = None
    """Share of the frame that is marked, 0 to 1; None where the model gives no mask."""
    overlay: str = ""
    """Path of the overlay, relative to the output folder."""
    error: str = ""


class Predicted(Record):
    table: str
    """Path of the CSV."""
    model: str
    bundle_digest: str
    images: int
    failed: int
    rows: tuple[Prediction, ...]

    def __str__(self) -> str:
        answered = f"{self.images - self.failed} of {self.images} images answered by {self.model}: {self.table}"
        return "\n".join([answered, *(f"{row.path}: {row.error}" for row in self.rows if row.error)])


def predict(bundle: Bundle, images: Sequence[Path], out: Path) -> Predicted:
    """Score files, and all images below folders, into ``out``: predictions.csv, and overlays/ where there is a mask.

    An input that cannot be read becomes a row with an error. Raises DataError where nothing was given.
    """
    paths = find(images)
    if not paths:
        raise DataError("there is no image to predict on", hint=f"name files, or folders with {', '.join(SUFFIXES)}")
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(bundle.card, open_scorer(bundle), out)
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    done = [run.batch(batch, BATCH * number) for number, batch in enumerate(_told(batches))]
    rows = tuple(row for part in done for row in part)
    _write(out / TABLE, bundle.card, rows)
    failed = sum(bool(row.error) for row in rows)
    return Predicted(
        table=str(out / TABLE),
        model=bundle.card.name,
        bundle_digest=bundle.digest(),
        images=len(rows),
        failed=failed,
        rows=rows,
    )


def find(images: Sequence[Path]) -> list[Path]:
    """Files as given, whatever their names; of folders, the files below with an image's suffix, sorted."""
    found: list[Path] = []
    for path in images:
        if path.is_dir():
            found += sorted(item for item in path.rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
        else:
            found.append(path)
    return found


@dataclass(frozen=True)
class _Run:
    card: ModelCard
    scorer: Scorer
    out: Path

    def batch(self, paths: Sequence[Path], first: int) -> list[Prediction]:
        """One row a path, in order; ``first`` is the number of the first path among all."""
        opened = [self._open(path) for path in paths]
        rows = [row for row, _ in opened]
        readable = [place for place, (_, pixels) in enumerate(opened) if pixels is not None]
        if not readable:
            return rows
        images = np.stack([pixels for _, pixels in opened if pixels is not None])
        scores = probabilities(self.scorer(images), self.card.heads, self.card.temperatures)
        decisions = decide(scores, self.card.heads, self.card.thresholds)
        for row, place in enumerate(readable):
            rows[place] = self._answered(
                rows[place], {name: value[row] for name, value in scores.items()},
                {name: value[row] for name, value in decisions.items()}, images[row], first + place,
            )  # fmt: skip
        return rows

    def _open(self, path: Path) -> tuple[Prediction, np.ndarray | None]:
        try:
            data = path.read_bytes()
        except OSError as error:
            return Prediction(path=str(path), error=f"cannot be read: {error.strerror}"), None
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            return Prediction(path=str(path), sha256=sha256), to_pixels(data, self.card.preprocess.pixels)
        except ImageError as error:
            return Prediction(path=str(path), sha256=sha256, error=error.message), None

    def _answered(
        self,
        row: Prediction,
        scores: dict[str, np.ndarray],
        decisions: dict[str, np.ndarray],
        image: np.ndarray,
        number: int,
    ) -> Prediction:
        update: dict[str, object] = {"probabilities": {}}
        for head in self.card.heads:
            if head.kind == "mask":
                mask = decisions[head.name][0]
                update["mask_fraction"] = float(mask.mean())
                update["overlay"] = self._overlay(image, mask, f"{number:05d}-{Path(row.path).stem}.png")
            else:
                update["probabilities"] = dict(zip(head.columns(), scores[head.name].tolist(), strict=True))
                update["decision"] = _decision(head, decisions[head.name])
        return row.model_copy(update=update)

    def _overlay(self, image: np.ndarray, mask: np.ndarray, name: str) -> str:
        (self.out / OVERLAYS).mkdir(exist_ok=True)
        (self.out / OVERLAYS / name).write_bytes(overlay_png(image, mask))
        return f"{OVERLAYS}/{name}"


def overlay_png(image: np.ndarray, mask: np.ndarray) -> bytes:
    """PNG of an image, uint8 (height, width, 1 or 3), with a bool mask (height, width) in red over it."""
    color = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    red = np.array([255, 0, 0], dtype=np.float32)
    color[mask] = np.rint(color[mask] * (1 - OPACITY) + red * OPACITY).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(color).save(stream, "PNG")
    return stream.getvalue()


def _decision(head: HeadSpec, decided: np.ndarray) -> str:
    if head.kind == "exclusive":
        return head.labels[int(decided)]
    return "|".join(label for label, yes in zip(head.labels, decided, strict=True) if yes)


def _write(path: Path, card: ModelCard, rows: Sequence[Prediction]) -> None:
    columns = [name for head in card.heads for name in head.columns()]
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "sha256", *columns, "decision", "mask_fraction", "overlay", "error"])
        for row in rows:
            values = [f"{row.probabilities[name]:.6f}" if name in row.probabilities else "" for name in columns]
            fraction = "" if row.mask_fraction is None else f"{row.mask_fraction:.6f}"
            table.writerow([row.path, row.sha256, *values, row.decision, fraction, row.overlay, row.error])
    part.replace(path)


def _told(batches: list[list[Path]]) -> Iterator[list[Path]]:
    yield from track(batches, what="predict (batches)", total=len(batches))

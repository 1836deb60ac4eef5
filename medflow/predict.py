"""A bundle applied to image files: a table of answers, masks, and overlays to look at.

Bytes become pixels as in training and serving (``preprocess.to_fitted``), and torch and ONNX bundles go through
the same scorer, so they give the same answers. Masks and overlays have the size of their image
(``masks.unfit_mask``). An overlay carries the decision and its probability in words; where a model gives no
mask it is drawn on request. For an overlay the image is decoded a second time: to hold a batch of large ones
would take gigabytes.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from medflow.atomic import replacing, write_bytes
from medflow.decisions import decide, probabilities, threshold_values
from medflow.errors import DataError, ImageError
from medflow.masks import mask_png, unfit_mask
from medflow.preprocess import Fitted, read, to_fitted
from medflow.progress import track
from medflow.records import Bundle, HeadSpec, ModelCard, Record
from medflow.report_table import read_reports, reports_of
from medflow.scoring import Scorer, open_scorer

TABLE = "predictions.csv"
MASKS = "masks"
OVERLAYS = "overlays"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm", ".dcm", ".dicom")
BATCH = 8
#: Red with this share of opacity marks the mask.
OPACITY = 0.4
#: Lines of text that fit above one another on an overlay.
LINES = 20
Overlays = Literal["masks", "all"]
"""Of which images there is a picture: of those with a mask, or of all."""


class Prediction(Record):
    """One image's answer. ``error`` says why there is none, and everything else is then empty."""

    path: str
    sha256: str = ""
    probabilities: Mapping[str, float] = Field(default_factory=dict)
    """``<head>.<label>`` → 0 to 1."""
    decision: str = ""
    """The class, or the labels at or above their thresholds, joined by ``|``."""
    mask_fraction: float | None = None
    """Share of the image that is marked, 0 to 1; None where the model gives no mask."""
    mask: str = ""
    """Path of the mask, a PNG of the image's size (upright), relative to the output folder."""
    overlay: str = ""
    """Path of the overlay, likewise."""
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


def predict(
    bundle: Bundle,
    images: Sequence[Path],
    out: Path,
    *,
    reports: Path | None = None,
    overlays: Overlays = "masks",
    samples: int | None = None,
) -> Predicted:
    """Score files, and all images below folders, into ``out``: predictions.csv, and masks/ and overlays/ where the
    model gives a mask.

    ``overlays``: ``all`` draws a picture with class and confidence where the model gives no mask, too. ``samples``:
    score that many of the images only, the same ones each time. ``reports`` is a CSV of the images' reports
    (``report_table``); an image without one is scored without. An input that cannot be read becomes a row with an
    error. Raises DataError where nothing was given, or reports to a model that reads none.
    """
    paths = find(images)
    if not paths:
        raise DataError("there is no image to predict on", hint=f"name files, or folders with {', '.join(SUFFIXES)}")
    paths = sampled(paths, samples)
    run = _Run(bundle.card, open_scorer(bundle), out, _reports(bundle, paths, reports), overlays)
    out.mkdir(parents=True, exist_ok=True)
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


def sampled(paths: Sequence[Path], count: int | None) -> list[Path]:
    """``count`` of the paths in their order, spread by a fixed seed; all of them for None."""
    if count is None or count >= len(paths):
        return list(paths)
    chosen = np.random.default_rng(len(paths)).permutation(len(paths))[:count]
    return [paths[place] for place in sorted(chosen.tolist())]


def _reports(bundle: Bundle, paths: Sequence[Path], table: Path | None) -> tuple[str | None, ...]:
    if table is None:
        return (None,) * len(paths)
    if bundle.card.text is None:
        raise DataError(f"{bundle.card.name} reads no reports, and {table} was given", hint="leave --reports out")
    return reports_of(paths, read_reports(table))


@dataclass(frozen=True)
class _Run:
    card: ModelCard
    scorer: Scorer
    out: Path
    reports: tuple[str | None, ...]
    """One for each path among all."""
    overlays: Overlays

    def batch(self, paths: Sequence[Path], first: int) -> list[Prediction]:
        """One row a path, in order; ``first`` is the number of the first path among all."""
        opened = [self._open(path) for path in paths]
        rows = [row for row, _ in opened]
        readable = [place for place, (_, pixels) in enumerate(opened) if pixels is not None]
        if not readable:
            return rows
        fitted = [image for _, image in opened if image is not None]
        images = np.stack([image.pixels for image in fitted])
        reports = [self.reports[first + place] for place in readable]
        scores = probabilities(self.scorer(images, reports), self.card.heads, self.card.temperatures)
        decisions = decide(scores, self.card.heads, self.card.thresholds)
        for row, place in enumerate(readable):
            values = {name: value[row] for name, value in scores.items()}
            decided = {name: value[row] for name, value in decisions.items()}
            rows[place] = self._answered(rows[place], values, decided, fitted[row].size, first + place)
        return rows

    def _open(self, path: Path) -> tuple[Prediction, Fitted | None]:
        try:
            data = path.read_bytes()
        except OSError as error:
            return Prediction(path=str(path), error=f"cannot be read: {error.strerror}"), None
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            return Prediction(path=str(path), sha256=sha256), to_fitted(data, self.card.preprocess.pixels)
        except ImageError as error:
            return Prediction(path=str(path), sha256=sha256, error=error.message), None

    def _answered(
        self,
        row: Prediction,
        scores: dict[str, np.ndarray],
        decisions: dict[str, np.ndarray],
        size: tuple[int, int],
        number: int,
    ) -> Prediction:
        update: dict[str, object] = {"probabilities": {}}
        words, mask = "", None
        for head in self.card.heads:
            if head.kind == "mask":
                cut = float(threshold_values(head, self.card.thresholds)[0])
                mask = unfit_mask(scores[head.name][0], cut, self.card.preprocess.pixels, size)
            else:
                update["probabilities"] = dict(zip(head.columns(), scores[head.name].tolist(), strict=True))
                update["decision"] = _decision(head, decisions[head.name])
                words = caption(head, scores[head.name], decisions[head.name])
        name = f"{number:05d}-{Path(row.path).stem}.png"
        if mask is not None:
            update |= {"mask_fraction": float(mask.mean()), "mask": self._put(MASKS, name, mask_png(mask))}
        if mask is not None or self.overlays == "all":
            image = read(Path(row.path).read_bytes(), self.card.preprocess.pixels.channels)
            update["overlay"] = self._put(OVERLAYS, name, overlay_png(image, mask, words))
        return row.model_copy(update=update)

    def _put(self, folder: str, name: str, png: bytes) -> str:
        """Write a picture; its path relative to the output folder."""
        (self.out / folder).mkdir(exist_ok=True)
        write_bytes(self.out / folder / name, png)
        return f"{folder}/{name}"


def caption(head: HeadSpec, scores: np.ndarray, decided: np.ndarray) -> str:
    """The decided class, or each decided label on a line, with its probability; ``none`` where no label was."""
    chosen = [int(decided)] if head.kind == "exclusive" else np.flatnonzero(decided).tolist()
    return "\n".join(f"{head.labels[place]} {scores[place]:.2f}" for place in chosen) or "none"


def overlay_png(image: Image.Image, mask: np.ndarray | None, words: str = "") -> bytes:
    """PNG of a mode L or RGB image, with a bool mask (height, width) in red over it and words in its corner."""
    color = image.convert("RGB")
    if mask is not None:
        reds = [round(value * (1 - OPACITY) + 255 * OPACITY) for value in range(256)]
        others = [round(value * (1 - OPACITY)) for value in range(256)]
        color.paste(color.point(reds + others + others), mask=Image.fromarray(mask).convert("L"))
    if words:
        size = max(8, min(color.size) // LINES)
        font, rim = ImageFont.load_default(size), max(1, size // 8)
        # White on a dark rim, so that it reads on lung and bone alike.
        place = (size // 2, size // 2)
        ImageDraw.Draw(color).multiline_text(place, words, "white", font, stroke_width=rim, stroke_fill="black")
    stream = BytesIO()
    color.save(stream, "PNG")
    return stream.getvalue()


def _decision(head: HeadSpec, decided: np.ndarray) -> str:
    if head.kind == "exclusive":
        return head.labels[int(decided)]
    return "|".join(label for label, yes in zip(head.labels, decided, strict=True) if yes)


def _write(path: Path, card: ModelCard, rows: Sequence[Prediction]) -> None:
    columns = [name for head in card.heads for name in head.columns()]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "sha256", *columns, "decision", "mask_fraction", "mask", "overlay", "error"])
        for row in rows:
            values = [f"{row.probabilities[name]:.6f}" if name in row.probabilities else "" for name in columns]
            fraction = "" if row.mask_fraction is None else f"{row.mask_fraction:.6f}"
            table.writerow([row.path, row.sha256, *values, row.decision, fraction, row.mask, row.overlay, row.error])


def _told(batches: list[list[Path]]) -> Iterator[list[Path]]:
    yield from track(batches, what="predict (batches)", total=len(batches))

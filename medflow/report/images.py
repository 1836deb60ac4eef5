"""Pictures of images: overlays of predicted and true masks, and a montage of a dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medflow.metrics import overlap
from medflow.records import Manifest, Pixels
from medflow.report.figure import PREDICTED_COLOUR, TRUE_COLOUR, Figure, canvas, finish, picture_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6


def overlays(
    image_ids: Sequence[str] | np.ndarray,
    images: np.ndarray,
    predicted: np.ndarray | None,
    true: np.ndarray,
    has_mask: np.ndarray,
) -> Figure:
    """Each image with the outline of its predicted mask and, where there is one, of its true mask.

    ``images`` uint8 (n, height, width, channels); ``predicted`` and ``true`` (n, height, width), set where above 0;
    ``predicted`` None where the model has no mask head.
    """
    from matplotlib.lines import Line2D

    figure, axes = _grid(len(images))
    scores = np.full((len(images), 2), np.nan)
    if predicted is not None and has_mask.any():
        scores[has_mask] = overlap(predicted[has_mask], true[has_mask])
    for place, axis in enumerate(axes[: len(images)]):
        said = f", Dice {scores[place, 0]:.2f}" if not np.isnan(scores[place, 0]) else ""
        show(axis, images[place], f"{_short(image_ids[place])}{said}")
        if has_mask[place]:
            _outline(axis, true[place], TRUE_COLOUR)
        if predicted is not None:
            _outline(axis, predicted[place], PREDICTED_COLOUR)
    if predicted is not None:
        lines = [Line2D([], [], color=colour, linewidth=1.2) for colour in (TRUE_COLOUR, PREDICTED_COLOUR)]
        figure.legend(lines, ["true", "predicted"], loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    rows = [(str(name), *scores[place]) for place, name in enumerate(image_ids)]
    return finish("overlays", "Images with predicted and true masks", figure, ["image_id", "dice", "iou"], rows)


def montage(manifest: Manifest, pixels: Pixels, *, count: int = 24, seed: int = 0) -> Figure:
    """Some images of a manifest, drawn from a seed, each under its labels."""
    chosen = manifest.take(np.flatnonzero([row is not None for row in manifest.column("pixel_row")]))
    chosen = chosen.take(_spread(len(chosen), count, seed))
    images = _stored(pixels, chosen.pixel_rows())
    labels = _labels(chosen)
    figure, axes = _grid(len(images))
    for axis, image, name, label in zip(axes, images, chosen.column("image_id"), labels, strict=False):
        show(axis, image, f"{label}\n{_short(name)}")
    rows = zip(chosen.column("image_id").tolist(), labels, strict=True)
    return finish("montage", "Some images", figure, ["image_id", "labels"], rows)


def augmented(
    image_ids: Sequence[str],
    before: np.ndarray,
    after: np.ndarray,
    masks_before: np.ndarray | None,
    masks_after: np.ndarray | None,
) -> Figure:
    """Training rows above what augmentation made of them, masks outlined.

    ``before`` and ``after`` uint8 (n, height, width, channels); masks (n, height, width), or None where there are none.
    """
    columns = max(1, len(image_ids))
    figure, axes = canvas(2, columns, width=1.7, height=1.9)
    parts = ((before, masks_before, "as stored"), (after, masks_after, "augmented"))
    for row, (images, masks, words) in enumerate(parts):
        for place, image in enumerate(images):
            axis = axes[row * columns + place]
            show(axis, image, words if row else f"{_short(image_ids[place])}\n{words}")
            if masks is not None:
                _outline(axis, masks[place], TRUE_COLOUR)
    difference = np.abs(after.astype(float) - before).mean(axis=(1, 2, 3))
    rows = [(name, float(value)) for name, value in zip(image_ids, difference, strict=True)]
    title = "A training batch before and after augmentation"
    return finish("augmentation", title, figure, ["image_id", "mean_gray_difference"], rows)


def stored_montage(pixels: Pixels, *, count: int = 24, seed: int = 0) -> Figure:
    """Some rows of a pixel store, as stored, under their row numbers."""
    rows = _spread(pixels.index.rows, count, seed)
    figure, axes = _grid(len(rows))
    for axis, image, row in zip(axes, _stored(pixels, rows), rows, strict=False):
        show(axis, image, f"row {row}")
    return finish("montage", "Some images as stored", figure, ["row"], [(int(row),) for row in rows])


def show(axes: Axes, image: np.ndarray, caption: str = "") -> None:
    """One image, uint8 (height, width, channels); a single channel is drawn gray, always from 0 to 255."""
    gray = image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=255)
    picture_axes(axes, caption)


def _outline(axes: Axes, mask: np.ndarray, colour: str) -> None:
    set_ = np.asarray(mask) > 0
    if set_.any():
        # A frame of zeros, so that a mask that touches the border is outlined there too.
        framed = np.pad(set_.astype(float), 1)
        places = np.arange(-1, set_.shape[1] + 1), np.arange(-1, set_.shape[0] + 1)
        axes.contour(*places, framed, levels=[0.5], colors=[colour], linewidths=1.2)


def _grid(count: int):
    columns = max(1, min(COLUMNS, count))
    rows = max(1, math.ceil(count / columns))
    figure, axes = canvas(rows, columns, width=1.7, height=1.9)
    for axis in axes:
        picture_axes(axis)
    return figure, axes


def _stored(pixels: Pixels, rows: np.ndarray) -> np.ndarray:
    from medflow.pixels import open_store

    smallest = min(store.spec.height for store in pixels.index.stores)
    return open_store(pixels, smallest).images(rows)


def _spread(size: int, count: int, seed: int) -> np.ndarray:
    order = np.random.default_rng([seed, size]).permutation(size)
    return np.sort(order[:count]).astype(np.int64)


def _labels(manifest: Manifest) -> list[str]:
    names: list[list[str]] = [[] for _ in range(len(manifest))]
    for head in manifest.card.heads:
        if head.kind == "mask":
            continue
        for row, targets in enumerate(manifest.targets(head)):
            names[row] += [label for label, value in zip(head.labels, targets, strict=True) if value == 1]
    return [", ".join(labels) or "none" for labels in names]


def _short(name: object, letters: int = 22) -> str:
    text = str(name)
    return text if len(text) <= letters else f"…{text[1 - letters :]}"

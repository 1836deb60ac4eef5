"""Curves and tables drawn from predictions, evaluations and training logs. Each returns a ``Figure``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medflow.metrics import ECE_BINS, known_rows
from medflow.records import Comparison, HeadSpec, Manifest, Predictions, TrainingLog
from medflow.report.figure import (
    Figure,
    canvas,
    colour,
    curve_canvas,
    dashes,
    finish,
    legend,
    legend_beside,
    plot_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = tuple[object, ...]


def training_curves(log: TrainingLog) -> Figure:
    """Loss, watched score, learning rate, and accuracy and Dice where the log has them, by epoch."""
    reached = _accuracy_and_dice(log)
    figure, panels = canvas(2, 2, width=5.2, height=3.4) if reached else canvas(1, 3, width=3.9, height=3.1)
    losses, scores, rates = panels[:3]
    steps = np.arange(1, len(log.epochs) + 1)
    plot_axes(losses, title="loss", x="epoch")
    losses.plot(steps, [epoch.train_loss for epoch in log.epochs], color=colour(0), label="train")
    losses.plot(steps, [epoch.val_loss for epoch in log.epochs], color=colour(1), label="validation")
    plot_axes(scores, title=f"validation {log.monitor}", x="epoch")
    scores.plot(steps, [epoch.val_score for epoch in log.epochs], color=colour(2), marker=".")
    scores.axhline(log.best_score, color=colour(6), linewidth=0.8, linestyle=":", label=f"best {log.best_score:.4f}")
    plot_axes(rates, title="learning rate", x="epoch").plot(steps, [epoch.lr for epoch in log.epochs], color=colour(4))
    for place, (name, values) in enumerate(reached.items()):
        panels[3].plot(steps, values, color=colour(place), linestyle=dashes(place), marker=".", label=name)
    if reached:
        plot_axes(panels[3], title=" and ".join(sorted({name.split()[-1] for name in reached})), x="epoch")
    stages = [epoch.stage for epoch in log.epochs]
    for axes in panels:
        if axes is not rates:
            legend(axes)
        for before in np.flatnonzero(np.diff(stages)):
            axes.axvline(before + 1.5, color="#999999", linewidth=0.8, linestyle="--")
    return finish("training_curves", "Training", figure, *_epoch_table(log))


def _accuracy_and_dice(log: TrainingLog) -> dict[str, list[float]]:
    """What each line is called → its values by epoch, NaN where an epoch has none; empty for a log without any."""
    names = sorted({name for epoch in log.epochs for name in epoch.scores if name.endswith(("/accuracy", "/dice"))})
    lines = {f"validation {name.replace('/', ' ')}": [e.scores.get(name, np.nan) for e in log.epochs] for name in names}
    learnt = [np.nan if epoch.train_accuracy is None else epoch.train_accuracy for epoch in log.epochs]
    return lines if np.isnan(learnt).all() else {"training accuracy": learnt, **lines}


def _epoch_table(log: TrainingLog) -> tuple[list[str], list[Row]]:
    """Header and rows of all numbers of a log; what no epoch has is no column."""
    columns: dict[str, list[float | None]] = {
        name: [getattr(epoch, name) for epoch in log.epochs]
        for name in ("stage", "epoch", "train_loss", "val_loss", "val_score", "lr", "train_accuracy")
    }
    if not any(epoch.train_accuracy is not None for epoch in log.epochs):
        del columns["train_accuracy"]
    for prefix, kept in (
        ("val_loss_", [epoch.losses for epoch in log.epochs]),
        ("train_loss_", [epoch.train_losses for epoch in log.epochs]),
        ("val_", [epoch.scores for epoch in log.epochs]),
    ):
        for name in sorted({name for values in kept for name in values}):
            columns[prefix + name.replace("/", "_")] = [values.get(name) for values in kept]
    return list(columns), list(zip(*columns.values(), strict=True))


def roc(predictions: Predictions, head: HeadSpec) -> Figure:
    """Receiver operating characteristic of each class (one against the rest) or label; those undefined are named."""
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, (axes,) = curve_canvas()
    plot_axes(axes, title=f"ROC: {head.name}", x="1 - specificity", y="sensitivity")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    rows: list[Row] = []
    for place, (label, scores, true) in enumerate(_questions(predictions, head)):
        if true.all() or not true.any():
            axes.plot([], [], color=colour(place), linestyle=dashes(place), label=f"{label}: undefined")
            continue
        alarms, hits, cuts = roc_curve(true, scores)
        area = roc_auc_score(true, scores)
        axes.plot(alarms, hits, color=colour(place), linestyle=dashes(place), label=f"{label}: AUROC {area:.3f}")
        rows += zip([label] * len(cuts), alarms, hits, cuts, strict=True)
    legend_beside(axes)
    header = ["label", "false_positive_rate", "true_positive_rate", "threshold"]
    return finish(f"roc_{head.name}", f"ROC of {head.name}", figure, header, rows)


def precision_recall(predictions: Predictions, head: HeadSpec) -> Figure:
    """Precision against recall of each class or label; a label's share of positives is what chance would reach."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, (axes,) = curve_canvas()
    plot_axes(axes, title=f"Precision and recall: {head.name}", x="recall", y="precision")
    axes.set_ylim(0, 1.02)
    rows: list[Row] = []
    for place, (label, scores, true) in enumerate(_questions(predictions, head)):
        if not true.any():
            axes.plot([], [], color=colour(place), linestyle=dashes(place), label=f"{label}: undefined")
            continue
        precision, recall, cuts = precision_recall_curve(true, scores, drop_intermediate=True)
        average = average_precision_score(true, scores)
        axes.step(
            recall, precision, where="post", color=colour(place), linestyle=dashes(place),
            label=f"{label}: AP {average:.3f} (positive {true.mean():.1%})",
        )  # fmt: skip
        rows += zip([label] * len(cuts), recall[:-1], precision[:-1], cuts, strict=True)
    legend_beside(axes)
    header = ["label", "recall", "precision", "threshold"]
    return finish(f"precision_recall_{head.name}", f"Precision and recall of {head.name}", figure, header, rows)


def reliability(predictions: Predictions, head: HeadSpec) -> Figure:
    """Predicted probability against observed frequency in 15 equal bins, all classes or labels pooled."""
    figure, (axes, counts) = canvas(1, 2, width=4.2, height=3.8)
    pairs = [(scores, true) for _, scores, true in _questions(predictions, head)]
    scores = np.concatenate([scores for scores, _ in pairs])
    true = np.concatenate([true for _, true in pairs])
    bins = np.minimum((scores * ECE_BINS).astype(int), ECE_BINS - 1)
    number = np.bincount(bins, minlength=ECE_BINS)
    filled = number > 0
    said = np.bincount(bins, scores, ECE_BINS)[filled] / number[filled]
    seen = np.bincount(bins, true, ECE_BINS)[filled] / number[filled]
    plot_axes(axes, title=f"Reliability: {head.name}", x="predicted probability", y="observed frequency")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    axes.plot(said, seen, color=colour(0), marker="o", markersize=4)
    plot_axes(counts, title="probabilities in each bin", x="predicted probability", y="count")
    counts.bar((np.arange(ECE_BINS) + 0.5) / ECE_BINS, number, width=0.9 / ECE_BINS, color=colour(0))
    edges = np.flatnonzero(filled) / ECE_BINS
    rows = zip(edges, edges + 1 / ECE_BINS, number[filled].tolist(), said, seen, strict=True)
    header = ["low", "high", "count", "mean_probability", "observed_frequency"]
    return finish(f"reliability_{head.name}", f"Reliability of {head.name}", figure, header, rows)


def confusion_counts(confusion: Sequence[Sequence[int]], head: HeadSpec) -> Figure:
    """Images of each true class (rows) by decision (columns)."""
    values = np.array(confusion)
    return _confusion(values, head, f"confusion_{head.name}", "images", [[f"{cell}" for cell in row] for row in values])


def confusion_shares(confusion: Sequence[Sequence[int]], head: HeadSpec) -> Figure:
    """The same, as shares of the true class: rows add up to 1; a class without images has an empty row."""
    counts = np.array(confusion, dtype=float)
    total = counts.sum(axis=1, keepdims=True)
    values = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    words = [["" if np.isnan(cell) else f"{cell:.2f}" for cell in row] for row in values]
    return _confusion(values, head, f"confusion_normalized_{head.name}", "share of the true class", words)


def class_balance(parts: Mapping[str, Manifest]) -> Figure:
    """Images with each label in each part of the split; unknown labels are not counted."""
    card = next(iter(parts.values())).card
    columns = [(head, name) for head in card.heads for name in head.columns()]
    counts = {
        part: [int(np.nansum(manifest.column(name).astype(float) == 1)) for _, name in columns]
        for part, manifest in parts.items()
    }
    figure, (axes,) = canvas(width=max(5.0, 1.2 + 0.75 * len(columns)), height=3.6)
    plot_axes(axes, title="images by label", y="images")
    width = 0.8 / len(parts)
    for place, (part, numbers) in enumerate(counts.items()):
        axes.bar(np.arange(len(columns)) + place * width, numbers, width, color=colour(place), label=part)
    middle = np.arange(len(columns)) + width * (len(parts) - 1) / 2
    axes.set_xticks(middle, [name.partition(".")[2] for _, name in columns], rotation=30, ha="right")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    header = ["head", "label", *parts]
    rows = [
        (head.name, name.partition(".")[2], *(numbers[place] for numbers in counts.values()))
        for place, (head, name) in enumerate(columns)
    ]
    return finish("class_balance", "Images by label", figure, header, rows)


def comparison(comparisons: Sequence[Comparison]) -> Figure:
    """Difference of candidate and incumbent with its interval, beside the margin that it must stay above."""
    figure, (axes,) = canvas(width=6.4, height=1.2 + 0.6 * max(len(comparisons), 1))
    plot_axes(axes, title="candidate minus incumbent (right is better)", x="difference")
    for place, item in enumerate(comparisons):
        axes.plot([item.low, item.high], [place, place], color=colour(0), linewidth=2)
        axes.plot([item.difference], [place], color=colour(0), marker="o")
        axes.plot([-item.margin] * 2, [place - 0.35, place + 0.35], color=colour(1), linestyle="--")
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(comparisons)), [f"{item.head} {item.metric}" for item in comparisons])
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    header = ["head", "label", "metric", "candidate", "incumbent", "difference", "low", "high", "margin", "n", "groups"]
    rows = [tuple(getattr(item, name) for name in header) for item in comparisons]
    return finish("comparison", "Candidate and incumbent", figure, header, rows)


def _confusion(values: np.ndarray, head: HeadSpec, name: str, what: str, words: Sequence[Sequence[str]]) -> Figure:
    side = max(3.4, 1.6 + 0.62 * len(head.labels))
    figure, (axes,) = canvas(width=side + 0.6, height=side)
    plot_axes(axes, title=f"{head.name}: {what}", x="decided", y="true").grid(False)
    axes.imshow(np.nan_to_num(values), cmap="Blues", vmin=0)
    axes.set_xticks(range(len(head.labels)), head.labels, rotation=30, ha="right")
    axes.set_yticks(range(len(head.labels)), head.labels)
    _write_cells(axes, np.nan_to_num(values), words)
    rows = [(label, *row) for label, row in zip(head.labels, values.tolist(), strict=True)]
    return finish(name, f"Confusion of {head.name}: {what}", figure, ["true", *head.labels], rows)


def _write_cells(axes: Axes, values: np.ndarray, words: Sequence[Sequence[str]]) -> None:
    dark = values.max(initial=0.0) / 2
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            ink = "white" if values[row, column] > dark else "black"
            axes.text(column, row, word, ha="center", va="center", fontsize=8, color=ink)


def _questions(predictions: Predictions, head: HeadSpec) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(label, probabilities, bool truth) over the rows known for it: each class against the rest, or each label."""
    scores, targets = predictions.probabilities[head.name], predictions.targets[head.name]
    rows = known_rows(targets) if head.kind == "exclusive" else np.ones(len(targets), dtype=bool)
    for place, label in enumerate(head.labels):
        known = rows & ~np.isnan(targets[:, place])
        yield label, scores[known, place].astype(np.float64), targets[known, place] > 0.5

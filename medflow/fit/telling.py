"""An epoch in words, for the console, and in numbers, for trackers."""

from __future__ import annotations

from collections.abc import Sequence

from medflow.records import EpochLog, HeadSpec


def line(entry: EpochLog, monitor: str, heads: Sequence[HeadSpec], *, better: bool) -> str:
    """What an epoch came to. Accuracies are those of the first label head, left out where they are not known."""
    label = next((head.name for head in heads if head.kind != "mask"), None)
    found = {"training": entry.train_accuracy, "validation": entry.scores.get(f"{label}/accuracy")}
    said = [f"{where} {value:.3f}" for where, value in found.items() if value is not None]
    accuracy = f"accuracy {', '.join(said)}; " if said else ""
    return (
        f"loss {entry.train_loss:.4f}, validation {entry.val_loss:.4f}; {accuracy}"
        f"{monitor} {entry.val_score:.4f}{' (best)' if better else ''}, "
        f"lr {entry.lr:.2e}, {entry.images_per_second:.0f} images/s"
    )


def metrics(entry: EpochLog, monitor: str) -> dict[str, float]:
    """``train/...``, ``val/...``, ``lr`` and ``images_per_second``, once over all epochs and once by stage."""
    values = {f"val/{name}": value for name, value in entry.scores.items()}
    values |= {f"val/{monitor}": entry.val_score, "val/score": entry.val_score}
    # After the score, which is the negated loss where that is monitored.
    values |= {"train/loss": entry.train_loss, "val/loss": entry.val_loss, "lr": entry.lr}
    values |= {"images_per_second": entry.images_per_second}
    values |= {f"val/loss/{name}": value for name, value in entry.losses.items()}
    values |= {f"train/loss/{name}": value for name, value in entry.train_losses.items()}
    if entry.train_accuracy is not None:
        values["train/accuracy"] = entry.train_accuracy
    return values | {f"stage_{entry.stage + 1}/{name}": value for name, value in values.items()}

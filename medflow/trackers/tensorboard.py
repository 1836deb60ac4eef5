"""TensorBoard: event files below MEDFLOW_HOME/tensorboard. ``tensorboard --logdir`` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medflow.home import home
from medflow.trackers import Ending, Offer, Sink, Value

PICTURES = (".png", ".jpg", ".jpeg")
WORDS = (".yaml", ".yml", ".json", ".txt", ".md", ".csv")


def offer(*names: str) -> Offer:
    """Event files in MEDFLOW_HOME/tensorboard/<names>."""
    return Offer("TensorBoard", lambda: _open(home().joinpath("tensorboard", *names)))


def _open(folder: Path) -> Sink:
    return TensorBoard(folder)


class TensorBoard:
    """``Sink`` that writes one event file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder))
        self._params: dict[str, Value] = {}

    def params(self, values: Mapping[str, Value]) -> None:
        # One text: a later one is shown in place of an earlier one of its name.
        self._params |= values
        rows = (f"| {name} | {value} |" for name, value in self._params.items())
        lines = ["| setting | value |", "|---|---|", *rows]
        self._writer.add_text("params", "\n".join(lines))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # Written at once: what a killed process had measured is on disk.
        self._writer.flush()

    def file(self, path: Path, folder: str) -> None:
        name = f"{folder}/{path.name}"
        if path.suffix in PICTURES:
            self._writer.add_image(name, _pixels(path), dataformats="HWC")
        elif path.suffix in WORDS:
            self._writer.add_text(name, f"```\n{path.read_text(encoding='utf-8')}\n```")

    def model(self, files: Sequence[Path], name: str) -> None:
        """Event files hold no models."""

    def finish(self, ending: Ending) -> None:
        self._writer.add_text("status", ending)
        self._writer.close()


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))

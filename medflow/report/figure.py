"""How every figure is drawn: one style, no pyplot, a PNG and the CSV behind it.

matplotlib is imported where something is drawn, here as in the modules beside: most steps of a run show tables alone,
and in a cluster each is a process of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's palette, told apart by the colour-blind; an eighth colour in place of its yellow."""
LINES = ("-", "--", ":")
TRUE_COLOUR, PREDICTED_COLOUR = "#009E73", "#D55E00"
GRID, INK, DPI = "#dddddd", "#333333", 110


@dataclass(frozen=True)
class Figure:
    """A picture, and the numbers it was drawn from."""

    name: str
    """File name without suffix."""
    title: str
    png: bytes
    csv: str


def canvas(rows: int = 1, columns: int = 1, *, width: float = 4.8, height: float = 3.6) -> tuple[Canvas, list[Axes]]:
    """An empty figure with its axes in reading order; ``width`` and ``height`` of one of them, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    return figure, axes


def plot_axes(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> Axes:
    """Give axes the common look of a line plot."""
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def picture_axes(axes: Axes, caption: str = "") -> Axes:
    """Give axes the look of a picture: no ticks, a small caption above."""
    axes.set_axis_off()
    axes.set_title(caption, fontsize=7, color=INK)
    return axes


def legend(axes: Axes) -> None:
    """Inside the axes, where they leave most room."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def legend_beside(axes: Axes) -> None:
    """To the right of the axes, where it hides no curve: a curve over few rows may pass anywhere."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def curve_canvas() -> tuple[Canvas, list[Axes]]:
    """A nearly square plot, with room for a legend beside it."""
    return canvas(width=7.4, height=4.4)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> str:
    """A line's style: where the colours begin again, lines are dashed, then dotted."""
    return LINES[index // len(COLOURS) % len(LINES)]


def finish(name: str, title: str, figure: Canvas, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Figure:
    """Render: the same drawing gives the same bytes, since no date or version is written into the PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return Figure(name=name, title=title, png=stream.getvalue(), csv=csv_text(header, rows))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with six significant digits for floats, empty for NaN and None."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _plain(cell: object) -> object:
    if cell is None:
        return ""
    if isinstance(cell, float | np.floating):
        return "" if np.isnan(cell) else f"{float(cell):.6g}"
    return cell

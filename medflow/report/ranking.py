"""The forest plot of a ranking, and its page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medflow.records import Ranking
from medflow.report import html
from medflow.report.figure import Figure, canvas, colour, finish, plot_axes


def forest(ranking: Ranking) -> Figure:
    """Left the value of each model, right its difference to the best, each with its interval."""
    count = len(ranking.ranked)
    figure, (values, differences) = canvas(1, 2, width=5.6, height=1.3 + 0.42 * count)
    name = ranking.what()
    plot_axes(values, title=f"{name} on {ranking.role} rows", x=f"value, {ranking.confidence:.0%} interval")
    plot_axes(differences, title="paired difference to the best", x="difference (left of 0 is worse)")
    for place, item in enumerate(ranking.ranked):
        shade = colour(1 if item.verdict == "worse" else 0)
        values.plot([item.low, item.high], [place, place], color=shade, linewidth=2)
        values.plot([item.value], [place], color=shade, marker="o")
        differences.plot([item.difference_low, item.difference_high], [place, place], color=shade, linewidth=2)
        differences.plot([item.difference], [place], color=shade, marker="o")
    differences.axvline(0, color="#999999", linewidth=0.8)
    for axes, labels in ((values, [item.name for item in ranking.ranked]), (differences, [""] * count)):
        axes.set_yticks(range(count), labels)
        axes.set_ylim(count - 0.5, -0.5)
    header = ["name", "made", "variant", "value", "low", "high", "n", "difference", "difference_low",
              "difference_high", "verdict"]  # fmt: skip
    rows = [tuple(getattr(item, field) for field in header) for item in ranking.ranked]
    return finish("forest", f"{name}: values and paired differences", figure, header, rows)


def ranking_page(ranking: Ranking, also: Sequence[Ranking] = ()) -> str:
    """The ranking by one metric, and beside it what the same models reach by others."""
    lead = (
        f"{ranking.what()} on {ranking.role} rows {ranking.rows_digest[:12]}; "
        f"{ranking.confidence:.0%} intervals, bootstrap over groups, differences paired"
    )
    note = "A tie: the interval of its difference to the best covers 0, so it is not shown to be worse."
    return html.page(
        f"Models of {ranking.dataset}",
        lead,
        html.section("Outcome", html.text(ranking.winner()), *_warning(ranking)),
        html.section("Every metric", *([_side_by_side((ranking, *also))] if also else [])),
        html.section("Intervals", html.figure(forest(ranking))),
        html.section("Ranking", _table(ranking), html.text(note)),
        *(html.section(f"By {other.what()}", html.figure(forest(other)), _table(other)) for other in also),
        html.section("Not ranked", html.bullets(ranking.apart)),
    )


def _table(ranking: Ranking) -> html.Html:
    rows = [
        (place, item.name, item.variant, item.value, _interval(item.low, item.high), item.difference,
         _interval(item.difference_low, item.difference_high), item.verdict, item.n,
         f"{item.bytes / 1e6:.2f}", item.made)
        for place, item in enumerate(ranking.ranked, start=1)
    ]  # fmt: skip
    header = ("", "model", "variant", ranking.metric, "interval", "difference", "interval", "", "images", "MB", "run")
    return html.table(header, rows)


def _side_by_side(rankings: Sequence[Ranking]) -> html.Html:
    """One row a model in the order of the first ranking, one column a metric; a dash where a model has none."""
    rows = [
        (item.name, *(math.nan if (place := other.of(item.name)) is None else place.value for other in rankings))
        for item in rankings[0].ranked
    ]
    return html.table(("model", *(other.what() for other in rankings)), rows)


def _warning(ranking: Ranking) -> list[html.Html]:
    if ranking.role == "val":
        return []
    return [
        html.text("These are test rows: a model that is picked by them has no untouched rows left to be judged on.")
    ]


def _interval(low: float, high: float) -> str:
    return "–" if low != low else f"{low:.4f} to {high:.4f}"

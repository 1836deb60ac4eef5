"""Pictures and page of a search over settings."""

from __future__ import annotations

from medflow.records import TuneResult
from medflow.report import html
from medflow.report.figure import Figure, canvas, colour, finish, legend, plot_axes


def history(result: TuneResult) -> Figure:
    """Score of each trial in order, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = canvas(width=6.4, height=3.6)
    plot_axes(axes, title=f"{result.dataset}, {result.model}", x="trial", y=f"{result.monitor} on validation rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for index, state in enumerate(("complete", "pruned")):
        shown = {item.number: item.score for item in result.trials if item.state == state and item.score is not None}
        if shown:
            axes.scatter(list(shown), list(shown.values()), color=colour(index), label=state, s=22, zorder=3)
    complete = [trial for trial in result.trials if trial.state == "complete" and trial.score is not None]
    tops = [max(item.score or 0.0 for item in complete[: place + 1]) for place in range(len(complete))]
    axes.step([trial.number for trial in complete], tops, where="post", color=colour(0), label="best so far")
    legend(axes)
    settings = list(result.winner().values)
    rows = [
        (trial.number, trial.state, trial.score, trial.epochs, *(str(trial.values[name]) for name in settings))
        for trial in result.trials
    ]
    return finish("history", "Trials in order", figure, ["trial", "state", "score", "epochs", *settings], rows)


def importance(result: TuneResult) -> Figure:
    """Share of the score's variance that each setting explains."""
    shares = sorted(result.importance.items(), key=lambda item: item[1])
    figure, (axes,) = canvas(width=6.4, height=1.0 + 0.4 * max(len(shares), 1))
    plot_axes(axes, title="importance of settings (fANOVA)", x="share of variance, 0 to 1")
    axes.barh([name for name, _ in shares], [share for _, share in shares], color=colour(0))
    return finish("importance", "Importance of settings", figure, ["setting", "share"], reversed(shares))


def figures(result: TuneResult) -> tuple[Figure, ...]:
    """What there is to draw: few trials say nothing of importance."""
    return (history(result), importance(result)) if result.importance else (history(result),)


def tune_page(result: TuneResult) -> str:
    best = result.winner()
    settings = list(best.values)
    rows = [
        (trial.number, trial.state, trial.score if trial.score is not None else "", trial.epochs,
         *(trial.values[name] if isinstance(trial.values[name], int | float) else str(trial.values[name])
           for name in settings), trial.reason)
        for trial in result.trials
    ]  # fmt: skip
    lead = f"best {result.monitor} {best.score:.4f} on validation rows in trial {best.number} of {len(result.trials)}"
    return html.page(
        f"Tuning of {result.model} on {result.dataset}",
        lead,
        html.section("Best settings", html.facts([(name, str(value)) for name, value in best.values.items()])),
        html.section("Search", *(html.figure(drawn) for drawn in figures(result))),
        html.section("Trials", html.table(("trial", "state", "score", "epochs", *settings, "why it ended"), rows)),
    )

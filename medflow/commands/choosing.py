"""Verbs that choose: tune searches for settings, compare ranks models."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medflow.commands import output
from medflow.commands.place import LOCAL, go
from medflow.commands.running import Name
from medflow.commands.settings import check_run_name, read_settings, settings_of
from medflow.commands.verb import At, JsonOption, Metadata, RunName, Settings, Source
from medflow.errors import ConfigError

if TYPE_CHECKING:
    from medflow.records import Ranking, TuneResult


class Rows(StrEnum):
    """On which rows models are compared."""

    val = "val"
    test = "test"


def tune(
    dataset: Name,
    settings: Settings = None,
    space: Annotated[
        str, typer.Option(metavar="NAME|YAML", help="Search space: a name in configs/recipes/search, or a file.")
    ] = "basics",
    trials: Annotated[int, typer.Option(min=1, help="Trials of the whole study, earlier calls included.")] = 20,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Begin no trial later.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="File to write; it must be new. [default: tuned_DATASET.yaml]",
                     show_default=False),
    ] = None,
    source: Source = None,
    metadata: Metadata = None,
    name: RunName = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Search for settings, and write a YAML to train with.

    Each trial is a training, scored on validation rows; test rows are never touched. Data steps run once.
    Bad trials are pruned. A killed search goes on where it was when it is called again; more --trials go further.

    \b
    Examples:
      medflow tune phantom --trials 10 train.epochs=3
      medflow run tuned_phantom.yaml
      medflow tune covid_radiography --space augmentation --timeout 3600 --out mine.yaml
      medflow tune phantom --space my_space.yaml --json | jq .best.values
    """
    given = settings_of(settings or (), source, metadata)
    reading = read_settings(dataset, settings or (), source, metadata)
    path = out or Path(f"tuned_{reading.config.dataset}.yaml")
    _refuse_existing(path)
    check_run_name(name, reading.config.dataset)
    from medflow.config.search import as_setting, read_search
    from medflow.config.sections import TuneBudget
    from medflow.platform import studies

    search = read_search(space, dataset, given)
    budget = TuneBudget(trials=trials) if timeout is None else TuneBudget(trials=trials, seconds=timeout)
    run_id, result = studies.run(reading.config, search, budget, name=name)
    found = [as_setting(*item) for item in result.winner().values.items()]
    tuned = read_settings(dataset, [*(settings or ()), *found], source, metadata)
    pictures = _write(path, _head(result, path), tuned, result)
    if as_json:
        output.emit_json(_tune_contract(result, run_id, path, pictures))
    else:
        _tell_tuned(result, path, pictures)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(
            f"{path} exists already, and is not overwritten", hint="name another file with --out, or move it"
        )
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"--out: expected a name that ends in .yaml, found {str(path)!r}", hint="for example mine.yaml"
        )


def _head(result: TuneResult, path: Path) -> str:
    best = result.winner()
    return (
        f"# medflow run {path}\n#\n"
        f"# Found by `medflow tune`: {result.monitor} {best.score:.4f} on validation rows in trial {best.number} of "
        f"{len(result.trials)} (study {result.study}).\n"
        "# The score is the best of many on the same rows, so it is too good: judge by the test rows of the run.\n"
    )


def _write(path: Path, head: str, tuned: Any, result: TuneResult) -> tuple[Path, ...]:
    from medflow.config.showing import as_yaml
    from medflow.report import tuning

    pictures = []
    for drawn in tuning.figures(result):
        picture = path.with_name(f"{path.stem}_{drawn.name}.png")
        picture.write_bytes(drawn.png)
        pictures.append(picture)
    part = path.with_name(f".{path.name}.part")
    part.write_text(head + as_yaml(tuned), encoding="utf-8")
    part.replace(path)
    return tuple(pictures)


def _tune_contract(result: TuneResult, run_id: str, path: Path, pictures: tuple[Path, ...]) -> dict[str, Any]:
    """What ``tune --json`` promises."""
    best = result.winner()
    return {
        "run_id": run_id,
        "study": result.study,
        "monitor": result.monitor,
        "best": {"trial": best.number, "score": best.score, "values": dict(best.values)},
        "trials": [trial.model_dump(mode="json") for trial in result.trials],
        "importance": dict(result.importance),
        "file": str(path.absolute()),
        "pictures": [str(picture.absolute()) for picture in pictures],
    }


def _tell_tuned(result: TuneResult, path: Path, pictures: tuple[Path, ...]) -> None:
    best = result.winner()
    _tell_trials(result)
    output.emit(f"\nbest {result.monitor} {best.score:.4f} in trial {best.number}, on validation rows")
    output.emit(f"wrote {path} and {', '.join(item.name for item in pictures)}\nnext: medflow run {path}")


def _tell_trials(result: TuneResult) -> None:
    settings = list(result.winner().values)
    rows = [
        (trial.number, trial.state, "" if trial.score is None else f"{trial.score:.4f}", trial.epochs,
         *(_short(trial.values[name]) for name in settings))
        for trial in result.trials
    ]  # fmt: skip
    output.emit_table(("trial", "state", result.monitor, "epochs", *settings), rows)
    if result.importance:
        output.emit()
        output.emit_table(
            ("setting", "importance"), [(key, f"{value:.2f}") for key, value in result.importance.items()]
        )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- compare -------------------------------------------------------------------------------------


def compare(
    dataset: Name,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Any metric of the evaluations, such as auroc, f1, dice, ece; again for a column more. "
            "The first one ranks. [default: auroc]",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Which head, where several have the metric.", show_default=False)
    ] = None,
    label: Annotated[str, typer.Option(help="A class, or macro for all.")] = "macro",
    rows: Annotated[Rows, typer.Option(help="val ranks trained models; test shows packaged versions.")] = Rows.val,
    out: Annotated[
        Path | None,
        typer.Option(metavar="HTML", help="Page to write. [default: compare_DATASET.html]", show_default=False),
    ] = None,
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Rank the models of a dataset by a metric, and show others beside it.

    Value and interval of each, and its paired difference to the best on the same rows; ties are called ties.
    What was measured on other rows is listed apart. Choose by validation rows: test rows only confirm.

    \b
    Examples:
      medflow compare phantom
      medflow compare phantom --metric dice --out dice.html
      medflow compare covid_radiography --metric balanced_accuracy --metric f1 --metric dice
      medflow compare covid_radiography --metric f1 --label COVID --json | jq -r .winner
      medflow compare phantom --rows test
    """
    go(on)
    name = read_settings(dataset, (), None).config.dataset
    path = out or Path(f"compare_{name}.html")
    from medflow.compare import Wanted, rank
    from medflow.platform import comparing
    from medflow.report.ranking import ranking_page

    found = comparing.contenders(name, "val" if rows is Rows.val else "test")
    wanted = [Wanted(metric=one, head=head, label=label) for one in dict.fromkeys(metric or ["auroc"])]
    ranking, *also = (rank(name, found, one) for one in wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(ranking_page(ranking, also), encoding="utf-8")
    part.replace(path)
    if as_json:
        told, others = ranking.model_dump(mode="json"), [item.model_dump(mode="json") for item in also]
        output.emit_json({**told, "winner": ranking.winner(), "also": others, "page": str(path.absolute())})
        return
    _tell_ranking(ranking, also)
    output.emit(f"wrote {path}")


def _tell_ranking(ranking: Ranking, also: Sequence[Ranking]) -> None:
    table = [
        (place, item.name, item.variant, f"{item.value:.4f}", f"{item.low:.4f} to {item.high:.4f}",
         f"{item.difference:+.4f}", f"{item.difference_low:+.4f} to {item.difference_high:+.4f}", item.verdict,
         *(_beside(other, item.name) for other in also))
        for place, item in enumerate(ranking.ranked, start=1)
    ]  # fmt: skip
    header = ("", "model", "variant", ranking.what(), "interval", "to the best", "interval", "verdict")
    output.emit_table((*header, *(other.what() for other in also)), table)
    for words in ranking.apart:
        output.emit(f"not ranked: {words}")
    if also:
        output.emit(f"ranked by {ranking.what()}; an interval stands in brackets")
    output.emit(f"\n{ranking.winner()} ({ranking.ranked[0].n} {ranking.role} rows)")
    if ranking.role == "test":
        output.emit("these are test rows: pick by validation rows, or none are left to judge by")


def _beside(ranking: Ranking, name: str) -> str:
    found = ranking.of(name)
    return "" if found is None else f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"

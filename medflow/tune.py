"""Search for settings: Optuna's TPE (Bergstra et al. 2011) over whole trainings, scored on validation rows.

The study lies in SQLite. Killed at any moment and called again, it goes on: the trial that was under way is given up,
and the next draws the same settings and takes up its checkpoints. So that this holds, the sampler is seeded anew for
every trial, by the seed and the number of trials finished before; it draws the same after a kill as without one.

Not so with ``pruner: hyperband``. It deals trials into brackets, each pruned and sampled from by itself, by Optuna's
own number of the trial, and a trial that was given up keeps its number. So a search that was killed goes on, but from
there its draws, and what is pruned, may differ from those of one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medflow.config.search import apply, check_scale
from medflow.config.sections import RunConfig
from medflow.config.sections.tuning import Dimension, SearchConfig, TuneBudget
from medflow.errors import TrainingError
from medflow.monitor import Monitor
from medflow.progress import say
from medflow.records import HeadSpec, Manifest, Normalization, Pixels, Trial, TuneResult
from medflow.s3 import AMBIENT, Access
from medflow.tracking import Files, Tracker
from medflow.train import train

if TYPE_CHECKING:
    import optuna

SCORE = "val/score"
"""What a training tells its tracker each epoch; larger is better."""


@dataclass(frozen=True)
class Rows:
    """What all trials learn from. There are no test rows in it."""

    train: Manifest
    val: Manifest
    pixels: Pixels
    normalization: Normalization
    heads: tuple[HeadSpec, ...]


@dataclass(frozen=True)
class Place:
    """Where a study is kept, and where its trials work."""

    study: str
    """Two searches with one name are one study: it must tell apart data, settings, space and code."""
    database: Path
    work: Path
    checkpoints: Files
    tracker: Callable[[str], AbstractContextManager[Tracker]]
    """Opens the tracker of a trial by its name."""
    access: Access = AMBIENT
    """To files in a bucket that a model starts from."""


def tune(rows: Rows, config: RunConfig, search: SearchConfig, budget: TuneBudget, place: Place) -> TuneResult:
    """Run trials until the budget is spent; what earlier calls finished counts.

    Raises TrainingError where no trial came to its end, ConfigError where drawn settings cannot be together, or where
    trials would be judged by losses that differ in kind.
    """
    check_scale(search, _monitor(rows, config))
    study = _open(search, config, place)
    _give_up_killed(study)
    started = time.monotonic()
    while len(_finished(study)) < budget.trials and (time.monotonic() - started < budget.seconds):
        _run_one(study, rows, config, search, budget, place)
    return _result(study, rows, config, search, place.study)


def _monitor(rows: Rows, config: RunConfig) -> str:
    """What trials are judged by: `auto` is the loss where validation rows can define no score."""
    targets = {head.name: rows.val.targets(head) for head in rows.heads if head.kind != "mask"}
    return Monitor(config.train.monitor, rows.heads, targets, len(rows.val)).name


# -- one trial -----------------------------------------------------------------------------------


def _run_one(
    study: optuna.Study, rows: Rows, config: RunConfig, search: SearchConfig, budget: TuneBudget, place: Place
) -> None:
    import optuna

    number = len(_finished(study)) + 1
    study.sampler = optuna.samplers.TPESampler(
        seed=(search.seed * 1_000_003 + number) % 2**32, n_startup_trials=search.startup
    )
    trial = study.ask()
    values = {key: _draw(trial, key, dimension) for key, dimension in search.space.items()}
    say(f"trial {number} of {budget.trials}: {_in_words(values)}")
    started = time.monotonic()
    state, score, reason = _train(trial, rows, apply(config, values), place, f"trial {number}")
    trial.set_user_attr("reason", reason)
    trial.set_user_attr("seconds", time.monotonic() - started)
    told = optuna.trial.TrialState.COMPLETE if state == "complete" else optuna.trial.TrialState.PRUNED
    trial.set_user_attr("state", state)
    study.tell(trial, score if state == "complete" else None, state=told)
    for name in place.checkpoints.names():
        place.checkpoints.remove(name)
    said = f"{score:.4f}" if state == "complete" and score is not None else reason
    say(f"trial {number} of {budget.trials}: {said}; {_best_so_far(study)}")


def _train(
    trial: optuna.Trial, rows: Rows, config: RunConfig, place: Place, name: str
) -> tuple[str, float | None, str]:
    """State, score and, where there is none, why."""
    import optuna

    with place.tracker(name) as tracker:
        try:
            bundle = train(
                rows.train, rows.val, rows.pixels, rows.normalization, rows.heads, config.models[0], config.train,
                work=place.work / "trial", tracker=_Watch(tracker, trial), checkpoints=place.checkpoints,
                access=place.access,
            )  # fmt: skip
        except optuna.TrialPruned as pruned:
            return "pruned", None, str(pruned)
        except TrainingError as error:
            # Settings under which training diverges are an answer, and a bad one.
            return "failed", None, error.message
    log = bundle.card.training
    assert log is not None
    trial.set_user_attr("monitor", log.monitor)
    return "complete", log.best_score, ""


class _Watch:
    """A tracker that also tells the study, and raises ``optuna.TrialPruned`` where the trial is not worth going on."""

    def __init__(self, tracker: Tracker, trial: optuna.Trial) -> None:
        self._tracker, self._trial = tracker, trial

    def params(self, values: Mapping[str, str | int | float | bool]) -> None:
        self._tracker.params(values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        import optuna

        self._tracker.metrics(values, step)
        self._trial.report(values[SCORE], step)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {step} at {values[SCORE]:.4f}")

    def file(self, path: Path, folder: str) -> None:
        self._tracker.file(path, folder)

    def model(self, files: Sequence[Path], name: str) -> None:
        self._tracker.model(files, name)


def _draw(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        # Optuna stores plain values only; a list of channels is one as JSON.
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in dimension.values]))
    low, high = dimension.ends()
    if dimension.kind == "int":
        return trial.suggest_int(key, low, high)  # type: ignore[arg-type]
    return trial.suggest_float(key, low, high, log=dimension.kind == "log")  # type: ignore[arg-type]


# -- the study -----------------------------------------------------------------------------------


def _open(search: SearchConfig, config: RunConfig, place: Place) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place.database.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=f"sqlite:///{place.database}",
        study_name=place.study,
        direction="maximize",
        load_if_exists=True,
        pruner=_pruner(search, sum(stage.epochs for stage in config.train.stages)),
    )


def _pruner(search: SearchConfig, epochs: int) -> optuna.pruners.BasePruner:
    from optuna import pruners

    if search.pruner == "none":
        return pruners.NopPruner()
    if search.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(epochs, 1))
    return pruners.MedianPruner(n_startup_trials=search.startup, n_warmup_steps=search.warmup)


def _give_up_killed(study: optuna.Study) -> None:
    """Mark what a killed process left under way as failed, which leaves it out of the search."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        say("the trial that was under way when the last call ended is begun again")


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _result(study: optuna.Study, rows: Rows, config: RunConfig, search: SearchConfig, name: str) -> TuneResult:
    found = _finished(study)
    trials = tuple(_trial(number, item, search) for number, item in enumerate(found, start=1))
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        reasons = "; ".join(f"trial {trial.number} {trial.reason}" for trial in trials[:3]) or "none was begun"
        raise TrainingError(
            f"no trial came to its end: {reasons}", hint="widen the search space, or give more --trials or --timeout"
        )
    best = max(complete, key=lambda trial: (trial.score or 0.0, -trial.number))
    return TuneResult(
        study=name,
        dataset=rows.train.card.name,
        model=config.models[0].key,
        monitor=str(found[best.number - 1].user_attrs["monitor"]),
        seed=search.seed,
        trials=trials,
        best=best.number,
        importance=_importance(study, complete),
    )


def _trial(number: int, found: optuna.trial.FrozenTrial, search: SearchConfig) -> Trial:
    last = max(found.intermediate_values, default=None)
    values = {
        key: json.loads(found.params[key]) if dimension.kind == "choice" else found.params[key]
        for key, dimension in search.space.items()
    }
    return Trial(
        number=number,
        state=found.user_attrs["state"],
        values=values,
        score=found.value if found.value is not None else None if last is None else found.intermediate_values[last],
        epochs=last or 0,
        reason=str(found.user_attrs["reason"]),
        seconds=round(float(found.user_attrs["seconds"]), 2),
    )


def _importance(study: optuna.Study, complete: list[Trial]) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(complete) < 4 or len({trial.score for trial in complete}) < 2:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: round(share, 6) for name, share in shares.items()}


def _best_so_far(study: optuna.Study) -> str:
    scores = [item.value for item in _finished(study) if item.value is not None]
    return f"best so far {max(scores):.4f}" if scores else "none has come to its end yet"


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )

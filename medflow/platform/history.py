"""What earlier runs decided: the placement of groups that `split` starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zenml.config.step_configurations import Step
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from medflow.config.sections import SplitConfig
from medflow.placement import loosens, once_test, placement_of, strictest
from medflow.platform import stack
from medflow.records import Placement, Source, Split

PAGE = 50
DATA_STEPS = ("ingest", "validate", "split")
"""What lies between a source and its parts: their settings and their code decide which rows there are."""
NO_ROWS = frozenset({"sizes"})
"""Parameters of these steps that change pixels alone."""


def placement(dataset: str, source: Source, config: SplitConfig, steps: Mapping[str, Step]) -> Placement:
    """Where groups and images lie already; ``steps`` are those of the run that asks, by name.

    Runs that split by the same settings are one line. A state of the data that was split before in it (same source,
    same settings and code of the data steps) gets the placement that `split` was *given* then, so that `split` stays
    cached; unless something of it has become stricter since. Any other state starts from where everything lay in
    all runs of the line before, at its strictest, so that nothing moves from test to training.
    Other split settings start afresh, and from there the placement names what was test.
    """
    line = (run for run in completed(dataset) if _drawn_alike(_settings(run), config))
    latest = next(line, None)
    if latest is None:
        return _afresh(dataset)
    if _same_state(latest, source, steps):
        return _given(latest)
    known = _known_after(latest)
    for run in line:
        if _same_state(run, source, steps) and not loosens(_result(run), known):
            return _given(run).model_copy(update={"remembered": known})
    return known


def _afresh(dataset: str) -> Placement:
    last = next((run for run in completed(dataset) if _settings(run) is not None), None)
    return Placement(once_test=once_test(output_of(last, "split", "test").load())) if last else Placement()


def _drawn_alike(first: SplitConfig | None, second: SplitConfig) -> bool:
    """Whether both draw the same split; what is allowed to be missing does not count, once it is no longer missing."""
    plain = {"allow_missing_groups": False}
    return first is not None and first.model_copy(update=plain) == second.model_copy(update=plain)


def _same_state(run: PipelineRunResponse, source: Source, steps: Mapping[str, Step]) -> bool:
    """Whether a run's rows were those that ``steps`` will make of ``source``."""
    there = steps_of(run)
    if any(_rows_by(there[name]) != _rows_by(steps[name]) for name in DATA_STEPS):
        return False
    return bool(output_of(run, "resolve", "source").content_hash == source.digest())


def _rows_by(step: Step) -> dict[str, Any]:
    """What decides which rows a step makes: its parameters, and its environment, which holds the code's digest."""
    parameters = {name: value for name, value in step.config.parameters.items() if name not in NO_ROWS}
    if "allow_missing_groups" in (given := parameters.get("config", {})):
        # It lets the same rows pass, or stops.
        parameters["config"] = {name: value for name, value in given.items() if name != "allow_missing_groups"}
    return {"parameters": parameters, "environment": step.config.environment}


def completed(dataset: str) -> Iterator[PipelineRunResponse]:
    """All of them, newest first: what lies far back may be the only one of its line."""
    client = stack.client()
    if not client.list_pipelines(name=dataset).items:
        return
    number, pages = 1, 1
    while number <= pages:
        page = client.list_pipeline_runs(
            pipeline=dataset, status=ExecutionStatus.COMPLETED, sort_by="desc:created", page=number, size=PAGE,
            hydrate=False,
        )  # fmt: skip
        yield from page.items
        number, pages = number + 1, page.total_pages


def steps_of(run: PipelineRunResponse) -> Mapping[str, Step]:
    return run.snapshot.step_configurations if run.snapshot else {}


def _settings(run: PipelineRunResponse) -> SplitConfig | None:
    step = steps_of(run).get("split")
    value: Any = step.config.parameters.get("config") if step else None
    try:
        return SplitConfig.model_validate(value)
    except ValueError:
        return None


def output_of(run: PipelineRunResponse, step: str, output: str) -> Any:
    return run.steps[step].outputs[output][0]


def _given(run: PipelineRunResponse) -> Placement:
    given: Placement = output_of(run, "resolve", "placement").load()
    return given


def _known_after(run: PipelineRunResponse) -> Placement:
    """Where everything lay in a run and in those of its line before."""
    given = _given(run)
    return strictest(strictest(given, given.remembered or Placement()), _result(run))


def _result(run: PipelineRunResponse) -> Placement:
    train, val, test = (output_of(run, "split", role).load() for role in ("train", "val", "test"))
    return placement_of(output_of(run, "validate", "valid").load(), Split(train=train, val=val, test=test))

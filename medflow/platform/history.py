"""What earlier runs decided: the placement of groups that `split` starts from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from medflow.config.sections import SplitConfig
from medflow.platform import stack
from medflow.records import Placement, Source, Split
from medflow.split import placement_of

LOOK_BACK = 50


def placement(dataset: str, source: Source, config: SplitConfig) -> Placement:
    """Where groups lie already.

    A source that was split before with these settings gets the placement that `split` was *given* then,
    so that `split` stays cached. A new state of the source starts from the result of the last split, so
    that a group never moves from test to training. Other settings start afresh.
    """
    earlier = [run for run in _completed(dataset) if _drawn_alike(_settings(run), config)]
    for run in earlier:
        if _output(run, "resolve", "source").content_hash == source.digest():
            given: Placement = _output(run, "resolve", "placement").load()
            return given
    return _result(earlier[0]) if earlier else Placement()


def _drawn_alike(first: SplitConfig | None, second: SplitConfig) -> bool:
    """Whether both draw the same split; what is allowed to be missing does not count, once it is no longer missing."""
    plain = {"allow_missing_groups": False}
    return first is not None and first.model_copy(update=plain) == second.model_copy(update=plain)


def _completed(dataset: str) -> Iterator[PipelineRunResponse]:
    client = stack.client()
    if not client.list_pipelines(name=dataset).items:
        return
    page = client.list_pipeline_runs(
        pipeline=dataset, status=ExecutionStatus.COMPLETED, sort_by="desc:created", size=LOOK_BACK, hydrate=False
    )
    yield from page.items


def _settings(run: PipelineRunResponse) -> SplitConfig | None:
    step = run.steps.get("split")
    value: Any = step.config.parameters.get("config") if step else None
    try:
        return SplitConfig.model_validate(value)
    except ValueError:
        return None


def _output(run: PipelineRunResponse, step: str, output: str) -> Any:
    return run.steps[step].outputs[output][0]


def _result(run: PipelineRunResponse) -> Placement:
    train, val, test = (_output(run, "split", role).load() for role in ("train", "val", "test"))
    return placement_of(_output(run, "validate", "valid").load(), Split(train=train, val=val, test=test))

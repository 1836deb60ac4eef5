"""One run of a schedule on this machine."""

from __future__ import annotations

from collections.abc import Callable

from medflow.platform import runs, stack
from medflow.platform.outcomes import RunOutcome
from medflow.platform.scheduling.records import Entry


def fire(entry: Entry, say: Callable[[str], None]) -> RunOutcome | str:
    """Run a schedule's pipeline to its end here, or say why it is left out. Raises what the failed step raised."""
    if entry.schedule.only_when_the_data_changed and (reason := _needless(entry)):
        return reason
    return runs.run(entry.config, say=say)


def _needless(entry: Entry) -> str | None:
    stack.use_local()
    from zenml.client import Client
    from zenml.config.compiler import Compiler
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    from medflow.platform import unchanged
    from pipelines.training import training

    pipeline = training(runs.settled(entry.config))
    pipeline.prepare()
    compiled = Compiler().compile(pipeline, Client().active_stack, PipelineRunConfiguration())
    return unchanged.reason(entry.config.dataset, compiled.step_configurations)

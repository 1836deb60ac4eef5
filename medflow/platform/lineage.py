"""The lineage of a run, read from ZenML (`medflow.lineage` says what it means)."""

from __future__ import annotations

from zenml.models import ArtifactVersionResponse, PipelineRunResponse, StepRunResponse

from medflow.lineage import Ancestor


def of_run(run: PipelineRunResponse) -> tuple[Ancestor, ...]:
    """Every artifact of a run with what it came from, in the order in which the steps started."""
    steps = sorted(run.steps.values(), key=lambda step: (step.start_time or step.created, step.name))
    return tuple(
        _ancestor(step, output, versions[0]) for step in steps for output, versions in sorted(step.outputs.items())
    )


def _ancestor(step: StepRunResponse, output: str, version: ArtifactVersionResponse) -> Ancestor:
    inputs = [item for versions in step.inputs.values() for item in versions]
    return Ancestor(
        artifact=output,
        content=_content(version),
        step=step.name,
        made_in=str(version.producer_pipeline_run_id or step.pipeline_run_id),
        cached=str(step.status.value) == "cached",
        came_from=tuple(sorted({_content(item) for item in inputs})),
    )


def _content(version: ArtifactVersionResponse) -> str:
    return str(version.content_hash or version.id)

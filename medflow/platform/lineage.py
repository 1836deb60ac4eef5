"""From which content a result came, resolved by content hash.

A step that was taken from the cache names the artifacts that it read when it ran, which can be older
versions of equal content. So lineage follows content hashes, not artifact ids: two versions with the same
hash are one node.
"""

from __future__ import annotations

from zenml.models import ArtifactVersionResponse, PipelineRunResponse, StepRunResponse

from medflow.records import Record


class Ancestor(Record):
    """One artifact that a run made or took from the cache."""

    artifact: str
    content: str
    """Content hash, the first 12 digits shown in tables."""
    step: str
    made_in: str
    """Id of the run that made it; this run, or the earlier one that a cached step came from."""
    cached: bool
    came_from: tuple[str, ...]
    """Content hashes of what its step read."""


def of_run(run: PipelineRunResponse) -> tuple[Ancestor, ...]:
    """Every artifact of a run with what it came from, in the order in which the steps started."""
    steps = sorted(run.steps.values(), key=lambda step: (step.start_time or step.created, step.name))
    return tuple(
        _ancestor(step, output, versions[0]) for step in steps for output, versions in sorted(step.outputs.items())
    )


def chain(run: PipelineRunResponse, step: str, output: str) -> tuple[Ancestor, ...]:
    """All that one artifact of a run came from, itself first."""
    everything = of_run(run)
    by_content = {item.content: item for item in everything}
    start = next(item for item in everything if item.step == step and item.artifact == output)
    found: dict[str, Ancestor] = {}
    waiting = [start]
    while waiting:
        item = waiting.pop()
        if item.content in found:
            continue
        found[item.content] = item
        waiting += [by_content[content] for content in item.came_from if content in by_content]
    return tuple(found.values())


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

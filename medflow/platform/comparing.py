"""The evaluations of a dataset that are on record, for `medflow compare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from medflow.compare import Contender, numbered
from medflow.platform import registry, stack
from medflow.records import Evaluation, Predictions

LOOK_BACK = 200
"""Runs that are looked through, newest first."""


def contenders(dataset: str, role: Literal["val", "test"]) -> tuple[Contender, ...]:
    """Every trained model on validation rows, or every packaged version on test rows; newest first, each once."""
    stack.use()
    found = list(_trained(dataset) if role == "val" else _versions(dataset))
    names = numbered([item.name for item in reversed(found)])[::-1]
    return tuple(replace(item, name=name) for item, name in zip(found, names, strict=True))


def _trained(dataset: str) -> Iterator[Contender]:
    """What ``train`` made, before any compression, as ``evaluate`` found it on validation rows."""
    seen: set[str] = set()
    for run in _runs(dataset):
        for name, step in sorted(run.steps.items()):
            key = name.removeprefix("evaluate_val_")
            version = step.outputs.get("evaluation") if f"train_{key}" in run.steps else None
            if not version or version[0].content_hash in seen:
                continue
            seen.add(str(version[0].content_hash))
            yield _contender(key, run.name, version[0], step.outputs["predictions"][0])


def _versions(dataset: str) -> Iterator[Contender]:
    for version in registry.versions(dataset):
        evaluation, predictions = (registry.artifact(version.ref, key) for key in ("evaluation", "predictions"))
        yield _contender(version.ref, version.run_id, evaluation, predictions)


def _contender(name: str, made: str, evaluation: Any, predictions: Any) -> Contender:
    loaded: Evaluation = evaluation.load()
    return Contender(name=name, made=made, evaluation=loaded, predictions=partial(_load, predictions))


def _load(artifact: Any) -> Predictions:
    loaded: Predictions = artifact.load()
    return loaded


def _runs(dataset: str) -> Iterator[PipelineRunResponse]:
    client = stack.client()
    if not client.list_pipelines(name=dataset).items:
        return
    yield from client.list_pipeline_runs(
        pipeline=dataset, status=ExecutionStatus.COMPLETED, sort_by="desc:created", size=LOOK_BACK, hydrate=True
    ).items

"""Whether a training would find nothing new: the same data, code and settings as the dataset's last completed one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from zenml.config.step_configurations import Step

from medflow import datasets, fetch
from medflow.config.sections import Declaration, SourceConfig
from medflow.platform import history, store_access
from medflow.records import Source

LOOK = "resolve"
"""The step that looks at the source."""
LAST = "record"
"""The step that a training has and a tuning has not."""


def reason(dataset: str, steps: Mapping[str, Step]) -> str | None:
    """Why a training of these steps may be left out, or None.

    Looks at the source, as the run's first step would: raises what ``fetch.resolve`` does.
    """
    last = next((run for run in history.completed(dataset) if LAST in history.steps_of(run)), None)
    if last is None or _decided_by(history.steps_of(last)) != _decided_by(steps):
        return None
    if history.output_of(last, LOOK, "source").content_hash != _source_now(steps[LOOK]).digest():
        return None
    return f"data, code and settings are those of {last.name}, the last completed run"


def _decided_by(steps: Mapping[str, Step]) -> Any:
    """What decides a run's results but the data: each step's settings, and the digests of its code and files."""
    facts = {name: [step.config.parameters, step.config.environment] for name, step in steps.items()}
    return json.loads(json.dumps(facts, default=_plain))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", by_alias=True)


def _source_now(look: Step) -> Source:
    given = look.config.parameters
    declared: Declaration | None = TypeAdapter(Declaration | None).validate_python(given.get("declared"))
    spec = datasets.get(str(given["dataset"]), declared)
    config = SourceConfig.model_validate(given["config"])
    return fetch.resolve(config, spec.card, spec.beside, access=store_access.of_store())

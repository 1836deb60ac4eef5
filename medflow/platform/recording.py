"""What is stamped on every run: model version and stage in ZenML, metrics, tags and alias in MLflow.

A cached step writes nothing, so all of this is written by the last, uncached step, from the artifacts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from zenml import get_step_context, link_artifact_to_model, log_metadata
from zenml.model.model import Model
from zenml.models import ModelVersionResponse, PipelineRunResponse

from medflow.errors import PlatformError
from medflow.platform import aliases, recorded_files, registry, reports, stack, trackers
from medflow.progress import say
from medflow.records import WHOLE_HEAD, Evaluation, PackageFacts, Promotion, Recorded, Score

if TYPE_CHECKING:
    from mlflow import MlflowClient


def record(dataset: str, facts: PackageFacts, evaluation: Evaluation, promotion: Promotion) -> Recorded:
    """Write this run down; returns the names by which it is known."""
    run = stack.client().get_pipeline_run(get_step_context().pipeline_run.id)
    version = registry.ensure_version(dataset, facts)
    _stamp(version, run, facts, evaluation)
    if promotion.promoted:
        _refuse_stale(dataset, promotion)
        registry.set_stage(version, promotion.stage)
    reference = f"{dataset}@{version.number}"
    mlflow_run = _track(dataset, reference, run, facts, evaluation, promotion)
    log_metadata(metadata={"model": reference, "promoted": promotion.promoted}, run_id_name_or_prefix=run.id)
    return Recorded(model=reference, run_id=str(run.id), mlflow_run_id=mlflow_run, content_digest=facts.content_digest)


def _refuse_stale(dataset: str, promotion: Promotion) -> None:
    """A run of the same dataset elsewhere may have taken the stage since this one was compared with its holder."""
    holder = registry.challenge(dataset, promotion.stage).package_digest
    if holder not in (promotion.incumbent, promotion.candidate):
        raise PlatformError(
            f"{promotion.stage} of {dataset} was given to another model while this run was going on; "
            "this one was never compared with it",
            hint="run again: what is trained is cached, and the candidate meets the new holder",
        )


def _stamp(
    version: ModelVersionResponse, run: PipelineRunResponse, facts: PackageFacts, evaluation: Evaluation
) -> None:
    steps = run.steps
    artifacts = {key: steps[step].outputs[output][0] for key, (step, output) in registry.LINKED.items()}
    model = Model(name=version.model.name, version=version.name)
    for artifact in artifacts.values():
        link_artifact_to_model(artifact, model)
    scores = [score.model_dump(mode="json") for score in registry.headline(evaluation)]
    log_metadata(
        metadata={
            "run_id": str(run.id),
            "package_digest": facts.content_digest,
            "bundle_digest": facts.bundle_digest,
            "bento": facts.tag,
            "variant": evaluation.variant,
            "scores": json.dumps(scores),
            "artifacts": {key: str(artifact.id) for key, artifact in artifacts.items()},
            "digests": {key: str(artifact.content_hash) for key, artifact in artifacts.items()},
        },
        model_name=version.model.name,
        model_version=str(version.name),
    )


def _track(
    dataset: str,
    reference: str,
    run: PipelineRunResponse,
    facts: PackageFacts,
    evaluation: Evaluation,
    promotion: Promotion,
) -> str:
    """The same in MLflow; its absence costs a warning and never the run."""
    try:
        mlflow = trackers.client()
        parent = trackers.parent_run(dataset)
        _write_parent(mlflow, parent, reference, run, facts, evaluation, promotion)
        if not aliases.is_registered(mlflow, dataset, facts.content_digest):
            # Before the version, which points at this folder; a later run of the same content sends nothing again.
            recorded_files.send_model(mlflow, parent, run)
        aliases.register(mlflow, dataset, parent, facts)
        if promotion.promoted:
            aliases.set_alias(dataset, promotion.stage, facts.content_digest)
        mlflow.set_terminated(parent, "FINISHED")
    except Exception as error:
        say(f"warning: MLflow does not answer, this run is not recorded there ({type(error).__name__}: {error})")
        return ""
    return parent


def _write_parent(
    mlflow: MlflowClient,
    parent: str,
    reference: str,
    run: PipelineRunResponse,
    facts: PackageFacts,
    evaluation: Evaluation,
    promotion: Promotion,
) -> None:
    trackers.MlflowRun(mlflow, parent).metrics(
        {**_metrics("test", evaluation.scores), **_validation_metrics(run)}, step=0
    )
    tags = {
        "zenml.model": reference,
        aliases.PACKAGE_TAG: facts.content_digest,
        "medflow.promoted": str(promotion.promoted).lower(),
        "medflow.reasons": "; ".join(promotion.reasons)[:5000],
        **{f"zenml.step.{name}": str(step.id) for name, step in run.steps.items()},
    }
    for name, value in tags.items():
        mlflow.set_tag(parent, name, value)
    records = {"evaluation": evaluation, "promotion": promotion, "package": facts}
    written = {f"{name}.json": item.model_dump_json(indent=1).encode() for name, item in records.items()}
    recorded_files.send(mlflow, parent, "model", written)
    recorded_files.send_config(mlflow, parent, run)


def _validation_metrics(run: PipelineRunResponse) -> dict[str, float]:
    """Scores over a whole head of every model and graph that this run judged on validation rows."""
    found: dict[str, float] = {}
    for step, evaluation in reports.validations(run).items():
        whole = [score for score in evaluation.scores if score.label in WHOLE_HEAD]
        found |= _metrics(f"val/{step}", whole)
    return found


def _metrics(prefix: str, scores: Iterable[Score]) -> dict[str, float]:
    return {
        _metric_name(f"{prefix}/{score.head}/{score.label}/{score.metric}"): score.value
        for score in scores
        if math.isfinite(score.value)
    }


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits, ``_ - . /`` and spaces."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)

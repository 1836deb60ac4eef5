"""The report of a run or of a model: one self-contained page, made from the stored artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from zenml.models import PipelineRunResponse

from medflow.atomic import write_bytes
from medflow.errors import ConfigError
from medflow.platform import lineage, registry, stack
from medflow.records import Bundle, Evaluation
from medflow.report.pages import RunReport, run_page

Kind = TypeVar("Kind", Bundle, Evaluation)


def write(reference_or_run: str, to: Path) -> Path:
    """Write the report of a run (id or name) or of a model reference to ``to``, a file or a folder."""
    run = find_run(reference_or_run)
    path = to / f"{run.name}.html" if to.is_dir() or not to.suffix else to
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, run_page(report_of(run)).encode())
    return path


def find_run(reference: str) -> PipelineRunResponse:
    """The run that an id, a name, or a model reference means. Raises ConfigError naming what could be meant."""
    client = stack.client()
    found = client.list_pipeline_runs(name=reference, size=1, hydrate=True).items
    if not found and _is_id(reference):
        found = client.list_pipeline_runs(id=reference, size=1, hydrate=True).items
    if found:
        return found[0]
    try:
        return client.get_pipeline_run(registry.find(reference).run_id)
    except ConfigError as error:
        raise ConfigError(
            f"{reference!r} is neither a run nor a model", hint="`medflow runs` and `medflow models` list them"
        ) from error


def report_of(run: PipelineRunResponse) -> RunReport:
    """What is stored of a run, as far as it came."""
    dataset = run.pipeline.name if run.pipeline else "run"
    bundles = _all(run, BUNDLE_STEPS, Bundle)
    evaluations = _all(run, VALIDATION_STEPS, Evaluation)
    return RunReport(
        title=f"{dataset}: {run.run_metadata.get('model', 'no model')}",
        lead=_lead(run),
        parts={role: part for role in ("train", "val", "test") if (part := _one(run, "split", role)) is not None},
        findings=_one(run, "validate", "findings"),
        cards=tuple(bundle.card for bundle in bundles),
        validation=tuple(evaluations),
        selection=_one(run, "select", "selection"),
        choice=_one(run, "choose", "choice"),
        evaluation=_one(run, "evaluate_test", "evaluation"),
        predictions=_one(run, "evaluate_test", "predictions"),
        samples_page=_one(run, "evaluate_test", "samples_page") or "",
        promotion=_one(run, "promote", "promotion"),
        lineage=lineage.of_run(run),
    )


def _lead(run: PipelineRunResponse) -> str:
    """What run it is; for one in a cluster why it failed, and where logs and events of its pods are kept."""
    facts = run.run_metadata
    failures = [f"{key}: {value}" for key, value in facts.items() if key.startswith("failure of ")]
    kept = [f"logs and events of its pods: {facts['pods']}"] if "pods" in facts else []
    return "; ".join([f"Run {run.name}, {run.status.value}, {run.id}", *failures, *kept])


def validations(run: PipelineRunResponse) -> dict[str, Evaluation]:
    """What each model and graph of a run scored on validation rows, by model key or variant."""
    steps = [name for name in run.steps if name.startswith(VALIDATION_STEPS)]
    return {name.removeprefix(VALIDATION_STEPS): _one(run, name, "evaluation") for name in steps}


VALIDATION_STEPS = "evaluate_val_"
BUNDLE_STEPS = ("train_", "prune", "export_", "quantize_")


def _one(run: PipelineRunResponse, step: str, output: str) -> Any:
    found = run.steps.get(step)
    versions = found.outputs.get(output) if found else None
    return versions[0].load() if versions else None


def _all(run: PipelineRunResponse, prefix: str | tuple[str, ...], kind: type[Kind]) -> list[Kind]:
    """Every output of this kind of the steps with this prefix, in the order in which the steps ran."""
    steps = [step for name, step in run.steps.items() if name.startswith(prefix) and step.outputs]
    steps.sort(key=lambda step: (step.start_time or step.created, step.name))
    made = [versions[0] for step in steps for versions in step.outputs.values()]
    return [version.load() for version in made if version.data_type.attribute == kind.__name__]


def _is_id(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4

"""Models, versions and stages: ZenML's model control plane, read and written by medflow's names.

A model is named like its dataset. A version is named by the content of its package, so that a run that
ends with the same content makes no new version. The stage of a version is ZenML's; MLflow's alias of
the same name follows it (`medflow.platform.recording`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from zenml.exceptions import EntityExistsError
from zenml.models import ArtifactVersionResponse, ModelVersionResponse

from medflow.errors import ArtifactError, ConfigError, MedflowError, PlatformError
from medflow.platform import aliases, stack
from medflow.platform.outcomes import ModelVersion
from medflow.records import Bundle, Challenge, Evaluation, Incumbent, Package, PackageFacts, Past, Promotion, Score
from medflow.seen import past_of

STAGES = ("production", "staging")
DIGITS = 12
#: What a model version links to: metadata key → (step, output) of the run that made it.
LINKED: Mapping[str, tuple[str, str]] = {
    "manifest": ("ingest", "manifest"),
    "train": ("split", "train"),
    "val": ("split", "val"),
    "test": ("split", "test"),
    "normalization": ("normalize", "normalization"),
    "selected": ("select", "selected"),
    "chosen": ("choose", "chosen"),
    "choice": ("choose", "choice"),
    "evaluation": ("evaluate_test", "evaluation"),
    "predictions": ("evaluate_test", "predictions"),
    "package": ("package", "package"),
    "promotion": ("promote", "promotion"),
}


# -- reading -------------------------------------------------------------------------------------


def versions(name: str | None) -> tuple[ModelVersion, ...]:
    """All versions of a model, or of every model; newest first."""
    found = stack.client().list_model_versions(model=name, size=1000, hydrate=True).items
    return tuple(sorted((_describe(item) for item in found), key=lambda item: item.created, reverse=True))


def find(reference: str) -> ModelVersion:
    """The version that ``NAME``, ``NAME@VERSION``, ``NAME@STAGE`` or ``production`` means.

    ``NAME`` alone is its production version, or the newest where none is promoted. Raises ConfigError
    naming what there is.
    """
    return _describe(_response(reference))


def bundle(reference: str, to: Path) -> Bundle:
    """A copy of the model's bundle in ``to``."""
    found: Bundle = _artifact(_response(reference), "chosen").load()
    return found.copy_to(to)


def package(reference: str, to: Path) -> Package:
    """A copy of the model's Bento in ``to``."""
    found: Package = _artifact(_response(reference), "package").load()
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy2(found.bento, to / found.bento.name)
    (to / Package.FACTS).write_text(found.facts.model_dump_json(indent=1))
    return Package(root=to, facts=found.facts)


def evaluation(reference: str) -> Evaluation:
    """The model's evaluation on test rows."""
    found: Evaluation = _artifact(_response(reference), "evaluation").load()
    return found


def artifact(reference: str, key: str) -> ArtifactVersionResponse:
    """One of the artifacts that a version links to, by its name in ``LINKED``."""
    return _artifact(_response(reference), key)


def promotion_of(reference: str) -> Promotion:
    """The last decision on promoting this version."""
    found: Promotion = _artifact(_response(reference), "promotion").load()
    return found


def challenge(name: str, stage: str) -> Challenge:
    """What holds a stage of a model now."""
    try:
        holder = stack.client().get_model_version(name, stage)
    except KeyError:
        return Challenge(stage=stage)
    return Challenge(
        stage=stage, model_version=str(holder.number), package_digest=str(holder.run_metadata["package_digest"])
    )


def incumbent(challenge: Challenge, candidate: PackageFacts, work: Path) -> Incumbent:
    """The bundle that holds the stage; none is fetched where none holds it or the candidate does."""
    if challenge.package_digest in (None, candidate.content_digest):
        return Incumbent(challenge=challenge)
    reference = f"{candidate.tag.partition(':')[0]}@{challenge.model_version}"
    holder = bundle(reference, work / "incumbent")
    return Incumbent(challenge=challenge, bundle=holder, past=_past(reference, holder))


def _past(reference: str, holder: Bundle) -> Past:
    """What a version's bundle learnt from, by the parts it is linked to; unknown where they are gone or are others."""
    version = _response(reference)
    try:
        train, val, manifest = (_artifact(version, key).load() for key in ("train", "val", "manifest"))
    except MedflowError as error:
        return Past(unknown=error.message)
    if train.digest() != holder.card.data_digest:
        return Past(unknown=f"the training rows on record of {reference} are not those of its card")
    return past_of(train, val, manifest)


# -- writing -------------------------------------------------------------------------------------


def version_name(content_digest: str) -> str:
    """Under which a version is on record; ZenML takes a name of digits alone for a version's number."""
    name = content_digest[:DIGITS]
    return f"v{name}" if name.isdecimal() else name


def ensure_version(name: str, facts: PackageFacts) -> ModelVersionResponse:
    """The version of this content, made where it is new."""
    client = stack.client()
    version = version_name(facts.content_digest)
    # A run of the same dataset elsewhere may make either in the moment after we looked.
    try:
        client.get_model(name)
    except KeyError:
        with suppress(EntityExistsError):
            client.create_model(name=name, description=f"Models trained on {name}")
    try:
        return client.get_model_version(name, version)
    except KeyError:
        with suppress(EntityExistsError):
            return client.create_model_version(name, name=version)
        return client.get_model_version(name, version)


def promote(reference: str, stage: str) -> ModelVersion:
    """Give a stage to a version by hand; the former holder is archived."""
    if stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}", hint=f"choose one of {', '.join(STAGES)}")
    version = _response(reference)
    set_stage(version, stage)
    aliases.set_alias(version.model.name, stage, str(version.run_metadata["package_digest"]))
    return _describe(_response(f"{version.model.name}@{version.number}"))


def set_stage(version: ModelVersionResponse, stage: str) -> None:
    """Move a stage to this version and note when."""
    from zenml import log_metadata

    stack.client().update_model_version(version.model.name, version.id, stage=stage, force=True)
    log_metadata(
        metadata={f"{stage}_since": datetime.now(UTC).isoformat()},
        model_name=version.model.name,
        model_version=str(version.name),
    )


def headline(evaluation: Evaluation) -> tuple[Score, ...]:
    """The macro scores of an evaluation."""
    return tuple(score for score in evaluation.scores if score.label == "macro")


# -- looking up ----------------------------------------------------------------------------------


def _response(reference: str) -> ModelVersionResponse:
    if reference in STAGES:
        return _last_promoted(reference)
    name, _, version = reference.partition("@")
    found = stack.client().list_model_versions(model=name, size=1000, hydrate=True).items if _exists(name) else []
    if not found:
        raise ConfigError(f"there is no model {name!r}", hint=_known(name))
    return _pick(name, version, list(found))


def _exists(name: str) -> bool:
    return any(model.name == name for model in stack.client().list_models(size=1000).items)


def _pick(name: str, version: str, found: list[ModelVersionResponse]) -> ModelVersionResponse:
    by_stage = {str(item.stage): item for item in found if item.stage}
    newest = max(found, key=lambda item: item.number)
    if not version:
        return by_stage.get("production", newest)
    if version in by_stage:
        return by_stage[version]
    if version == "latest":
        return newest
    for item in found:
        if version in (str(item.number), item.name):
            return item
    known = [*sorted(by_stage), *(str(item.number) for item in found)]
    raise ConfigError(f"model {name!r} has no version {version!r}", hint=f"choose one of {', '.join(known)}")


def _last_promoted(stage: str) -> ModelVersionResponse:
    found = stack.client().list_model_versions(stage=stage, size=1000, hydrate=True).items
    if not found:
        raise ConfigError(f"no model is in {stage}", hint="`medflow run DATASET` trains and promotes one")
    return max(found, key=lambda item: str(item.run_metadata.get(f"{stage}_since", "")))


def _known(name: str) -> str:
    names = sorted(model.name for model in stack.client().list_models(size=1000).items)
    if not names:
        return f"`medflow run {name}` trains one"
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"


def _artifact(version: ModelVersionResponse, key: str) -> ArtifactVersionResponse:
    ids: Any = version.run_metadata.get("artifacts")
    if not ids or key not in ids:
        raise PlatformError(
            f"{version.model.name}@{version.number} has no {key} on record",
            hint="the run that made it did not end; run the pipeline again",
        )
    try:
        return stack.client().get_artifact_version(ids[key])
    except KeyError as error:
        raise ArtifactError(
            f"the {key} of {version.model.name}@{version.number} was deleted", hint="run the pipeline again"
        ) from error


def _describe(version: ModelVersionResponse) -> ModelVersion:
    facts = version.run_metadata
    scores = json.loads(str(facts.get("scores", "[]")))
    return ModelVersion(
        name=version.model.name,
        version=str(version.number),
        stages=(str(version.stage),) if version.stage else (),
        created=version.created,
        run_id=str(facts.get("run_id", "")),
        package_digest=str(facts.get("package_digest", "")),
        variant=str(facts.get("variant", "")),
        metrics=tuple(Score.model_validate(score) for score in scores),
    )

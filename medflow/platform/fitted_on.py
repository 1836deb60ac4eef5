"""On which images a model was fitted, from the store: its training and validation rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zenml.models import ArtifactVersionResponse

from medflow.errors import ArtifactError
from medflow.platform import registry, stack
from medflow.records import ModelCard, Past
from medflow.seen import past_of

PAGE = 200


def of_model(reference: str) -> Past:
    """Those of a model on record, by the rows that its version links to. Raises as ``registry.find``."""
    found = registry.find(reference)
    try:
        return _past(*(registry.artifact(found.ref, key) for key in ("train", "val", "manifest")))
    except ArtifactError as error:
        return Past(unknown=error.message)


def of_card(card: ModelCard) -> Past:
    """Those of a bundle that came as files: the split of this store whose training rows its card names by digest."""
    for train in _train_parts():
        if train.content_hash == card.data_digest:
            return _of_run(train)
    return Past(unknown=f"no run of this machine made its training rows, {card.data_digest[:12]}")


def _of_run(train: ArtifactVersionResponse) -> Past:
    try:
        steps = train.run.steps
        parts, listed = steps["split"].outputs, steps["ingest"].outputs
        return _past(parts["train"][0], parts["val"][0], listed["manifest"][0])
    except KeyError:
        return Past(unknown="the run that split them was deleted")
    except ArtifactError as error:
        return Past(unknown=error.message)


def _past(*versions: ArtifactVersionResponse) -> Past:
    train, val, manifest = (_load(version) for version in versions)
    return past_of(train, val, manifest)


def _load(version: ArtifactVersionResponse) -> Any:
    return version.load()


def _train_parts() -> Iterator[ArtifactVersionResponse]:
    client = stack.client()
    page = client.list_artifact_versions(artifact="train", sort_by="desc:created", size=PAGE, hydrate=True)
    yield from page.items
    for number in range(2, page.total_pages + 1):
        yield from client.list_artifact_versions(
            artifact="train", sort_by="desc:created", size=PAGE, page=number, hydrate=True
        ).items

"""Read every stored byte and compare it with what was written."""

from __future__ import annotations

from collections.abc import Iterator

from zenml.models import ArtifactVersionResponse

from medflow.platform import caching, stack, stored
from medflow.platform.outcomes import Damage, Verified
from medflow.progress import track

PAGE = 200


def verify() -> Verified:
    """All artifacts of the store. The step of a damaged one runs again at the next run."""
    versions = list(_versions())
    size = 0
    damaged = []
    for version in track(versions, what="verify artifacts", total=len(versions)):
        size += int(str(version.run_metadata.get("bytes", 0)))
        problem = caching.artifact_damage(version, check=stored.full_check)
        if problem:
            damaged.append(_damage(version, problem))
    return Verified(artifacts=len(versions), bytes=size, damaged=tuple(damaged))


def _versions() -> Iterator[ArtifactVersionResponse]:
    client = stack.client()
    page = client.list_artifact_versions(size=PAGE, hydrate=True)
    yield from page.items
    for number in range(2, page.total_pages + 1):
        yield from client.list_artifact_versions(size=PAGE, page=number, hydrate=True).items


def _damage(version: ArtifactVersionResponse, problem: str) -> Damage:
    producer = version.step if version.producer_step_run_id else None
    if producer is not None:
        caching.expire(producer)
    return Damage(
        artifact=version.artifact.name,
        version=str(version.version),
        uri=version.uri,
        problem=problem,
        step=producer.name if producer else "",
    )

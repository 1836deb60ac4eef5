"""The cache rule: what is in a step's key beyond ZenML's own, and when a hit counts.

Key: ZenML hashes the step's name, parameters, inputs (by content hash), outputs and environment. The
step's own source text is taken out (it counts comments) and the digest of its import closure
(`medflow.platform.code`) is put in, through an environment variable of the step; likewise the bytes of
files that its settings name.

Hit: ZenML never looks whether a cached artifact still exists. ``checked_hits`` does, at the moment a
key matches: a step run with a missing, truncated or altered output is expired and the step runs.
It wraps one function of ZenML for as long as a pipeline is started here, because a check beforehand
would have to guess which of all earlier step runs will match.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

from zenml.config.cache_policy import CachePolicy
from zenml.materializers.materializer_registry import materializer_registry
from zenml.orchestrators import cache_utils

from medflow.imports import FIRST_PARTY
from medflow.platform import code, stack, stored
from medflow.platform.context import FILES_VARIABLE
from medflow.records import digest_of

if TYPE_CHECKING:
    from zenml.models import StepRunResponse
    from zenml.steps import BaseStep

CODE_VARIABLE = "MEDFLOW_CODE"
#: Under this name in a step's ``extra``, which is in no key: the modules whose digest the key holds.
ROOTS = "roots"
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def sound(step: BaseStep, *, also: Iterable[str] = (), files: Sequence[tuple[str, str]] = ()) -> BaseStep:
    """``step`` with the code it reaches in its cache key; ``also`` names modules found at run time.

    So are ``files``, names and digests of what its settings name: a path stays the same when what lies there does not.
    """
    reached_from = roots(step, also=also)
    environment = {CODE_VARIABLE: code.digest(reached_from)}
    if files:
        environment[FILES_VARIABLE] = digest_of(files)
    extra = {ROOTS: list(reached_from)}
    return step.with_options(environment=environment, extra=extra, cache_policy=CachePolicy(include_step_code=False))


def roots(step: BaseStep, *, also: Iterable[str] = ()) -> tuple[str, ...]:
    """Modules from which a step's code is reached: its own, and its materializers'."""
    return tuple(sorted({step.entrypoint.__module__, *_materializers(step), *also}))


def _materializers(step: BaseStep) -> Iterator[str]:
    definition = step.entrypoint_definition
    annotations = [item.annotation for item in definition.inputs.values()]
    annotations += [item.resolved_annotation for item in definition.outputs.values()]
    for annotation in annotations:
        for kind in (annotation, *get_args(annotation)):
            module = materializer_registry[kind].__module__ if inspect.isclass(kind) else ""
            if module.partition(".")[0] in FIRST_PARTY:
                yield module


@contextmanager
def checked_hits(say: Callable[[str], None]) -> Iterator[None]:
    """Within this block a cache hit counts only if its artifacts are whole."""
    find = cache_utils.get_cached_step_run

    def find_whole(cache_key: str) -> StepRunResponse | None:
        while (hit := find(cache_key)) is not None:
            problem = damage(hit)
            if problem is None:
                return hit
            say(f"{hit.name} runs again: {problem}")
            expire(hit)
        return None

    cache_utils.get_cached_step_run = find_whole
    try:
        yield
    finally:
        cache_utils.get_cached_step_run = find


def damage(step_run: StepRunResponse) -> str | None:
    """What is wrong with the stored outputs of a step run, or None."""
    for name, versions in step_run.outputs.items():
        for version in versions:
            problem = artifact_damage(version)
            if problem:
                return f"its artifact {name} is damaged ({problem})"
    return None


def artifact_damage(version: Any, *, check: Callable[..., str | None] = stored.quick_check) -> str | None:
    """What is wrong with one artifact version, or None; foreign artifacts are checked for existence only."""

    store = stack.client().active_stack.artifact_store
    digest = version.run_metadata.get("index_sha256")
    if digest is None:
        return None if store.exists(version.uri) else "it is missing"
    return check(store, version.uri, str(digest))


def expire(step_run: StepRunResponse) -> None:
    """Take a step run out of the cache for good."""

    stack.client().update_step_run(step_run.id, cache_expires_at=LONG_AGO)

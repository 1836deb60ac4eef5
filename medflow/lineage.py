"""From which content a result came, resolved by content hash.

A step that was taken from the cache names the artifacts that it read when it ran, which can be older
versions of equal content. So lineage follows content hashes, not artifact ids: two versions with the same
hash are one node.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def chain(ancestors: Sequence[Ancestor], step: str, artifact: str) -> tuple[Ancestor, ...]:
    """All that one artifact of a run came from, itself first. Raises KeyError where the run has no such artifact.

    A step that hands on what it was given, as `select` does, makes a second artifact of equal content: both are
    that node, and what either came from belongs to its history.
    """
    by_content: dict[str, list[Ancestor]] = {}
    for item in ancestors:
        by_content.setdefault(item.content, []).append(item)
    waiting = [{(item.step, item.artifact): item for item in ancestors}[step, artifact].content]
    seen: dict[str, list[Ancestor]] = {}
    while waiting:
        content = waiting.pop()
        if content in by_content and content not in seen:
            seen[content] = by_content[content]
            waiting += [parent for item in by_content[content] for parent in item.came_from]
    return tuple(item for items in seen.values() for item in items)

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
    """All that one artifact of a run came from, itself first. Raises KeyError where the run has no such artifact."""
    by_content = {item.content: item for item in ancestors}
    waiting = [{(item.step, item.artifact): item for item in ancestors}[step, artifact]]
    found: dict[str, Ancestor] = {}
    while waiting:
        item = waiting.pop()
        if item.content not in found:
            found[item.content] = item
            waiting += [by_content[content] for content in item.came_from if content in by_content]
    return tuple(found.values())

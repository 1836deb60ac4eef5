"""What a run is called."""

from __future__ import annotations

import itertools

from medflow.platform import stack


def free(name: str | None) -> str | None:
    """``name``, or with the first number that no run has: ZenML's names are unique. None leaves it to ZenML."""
    if name is None:
        return None
    client = stack.client()
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(each for each in names if not client.list_pipeline_runs(name=f"equals:{each}", size=1).items)

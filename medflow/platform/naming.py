"""What a run is called."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

from medflow.platform import stack


def free(name: str | None) -> str | None:
    """``name``, or with the first number that no run has: ZenML's names are unique. None leaves it to ZenML."""
    if name is None:
        return None
    client = stack.client()
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(each for each in names if not client.list_pipeline_runs(name=f"equals:{each}", size=1).items)


def dated(pipeline: str) -> str:
    """As ZenML calls a run that is given no name: after its pipeline, and the time to the microsecond."""
    return f"{pipeline}-{datetime.now(UTC):%Y_%m_%d-%H_%M_%S_%f}"

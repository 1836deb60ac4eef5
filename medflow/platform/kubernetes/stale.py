"""Whether the image holds the code that the cache keys speak of.

The digests in the keys are computed where a run is started. An image with other code would run that instead, and its
results would be found under the wrong keys for ever after.
"""

from __future__ import annotations

from zenml.models import PipelineSnapshotResponse

from medflow.platform import code
from medflow.platform.caching import CODE_VARIABLE, ROOTS


def problem(snapshot: PipelineSnapshotResponse) -> str | None:
    """Which steps' code is another one here, or None."""
    differing = sorted(
        name
        for name, step in snapshot.step_configurations.items()
        if ROOTS in step.config.extra
        and code.digest(step.config.extra[ROOTS]) != step.config.environment.get(CODE_VARIABLE)
    )
    if not differing:
        return None
    return (
        f"the image's code, or its packages, differ from those of the machine that started the run, in "
        f"{len(differing)} of {len(snapshot.step_configurations)} steps ({', '.join(differing[:3])}); "
        "build the image of this code (`make images`) and name it in the stack, or check out the image's commit"
    )

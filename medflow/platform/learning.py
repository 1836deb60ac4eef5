"""How the running step trains: in its own process, unless the program of its pod has set something else.

Set from outside, so that what only moves a training elsewhere is in no training's cache key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medflow.fit import Learn

_chosen: list[Learn] = []


def use(learn: Learn) -> None:
    """From now on steps of this process train so."""
    _chosen[:] = [learn]


def learner() -> Learn:
    from medflow.fit import fit

    return _chosen[0] if _chosen else fit

"""Settings that name heads, checked against the heads that a dataset declares."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args

from medflow.config.sections import RunConfig
from medflow.config.sections.losses import HeadKind
from medflow.errors import ConfigError


def check_heads(config: RunConfig, declared: Sequence[str]) -> None:
    """Raise ConfigError where `heads`, a loss, a loss weight or a floor names a head that is not there."""
    if config.heads is not None and not config.heads:
        raise ConfigError("heads: expected at least one head, found []", hint=f"there is {', '.join(declared)}")
    _refuse("heads", config.heads or (), declared)
    # Against all that are declared: `heads=[...]` on the command line must not contradict the YAML's weights.
    _refuse("train.loss_weights", tuple(config.train.loss_weights), declared)
    _refuse("train.losses", tuple(config.train.losses), (*declared, *get_args(HeadKind)))
    _refuse("promote.floors", tuple(floor.head for floor in config.promote.floors if floor.head), declared)


def of_learnt_heads(config: RunConfig, declared: Sequence[str]) -> RunConfig:
    """The settings without losses and weights of heads that `heads` leaves out, so that they are in no cache key."""
    left_out = {name for name in declared if config.heads is not None and name not in config.heads}
    kept = {
        "losses": {name: loss for name, loss in config.train.losses.items() if name not in left_out},
        "loss_weights": {name: weight for name, weight in config.train.loss_weights.items() if name not in left_out},
    }
    return config.model_copy(update={"train": config.train.model_copy(update=kept)})


def _refuse(key: str, named: Sequence[str], known: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"{key}: expected {' or '.join(known)}, found {name!r}",
                hint=f"{meant}`medflow datasets` lists each dataset's heads",
            )

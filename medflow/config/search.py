"""Search spaces: found, read, and checked against the settings that they search, before anything runs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medflow.config import keys
from medflow.config._yaml import read_document
from medflow.config.places import shipped, shown
from medflow.config.reading import read
from medflow.config.refusals import unknown_key
from medflow.config.sections import RunConfig
from medflow.config.sections.tuning import SearchConfig
from medflow.errors import ConfigError

SEARCHED = ("train", "models", "model")
"""Sections that a trial may vary: what lies before training is made once, for all trials."""
MONITOR = "train.monitor"
LOSSES = ("losses", "loss_weights", "label_smoothing", "class_weights")
"""Settings of `train` that define the loss, on training and on validation rows."""


def read_search(name: str, run: str, overrides: Sequence[str]) -> SearchConfig:
    """The search space called ``name`` (a path, or shipped), fit for the run's settings. Raises ConfigError."""
    path = find_search(name)
    try:
        search = SearchConfig.model_validate_json(json.dumps(read_document(path).values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{shown(path)}: {key}: {first['msg']}", hint="configs/recipes/search has examples of every kind"
        ) from error
    base = read(run, overrides)
    if len(base.config.models) != 1:
        raise ConfigError(
            f"{shown(base.file)} lists {len(base.config.models)} models, and one is tuned at a time",
            hint="name one: 'models=[{kind: ..., name: ...}]'",
        )
    for key, dimension in search.space.items():
        _refuse_foreign(path, key, dict(base.tree))
        for value in dimension.ends():
            _refuse_impossible(path, key, value, run, overrides)
    check_scale(search, base.config.train.monitor)
    return search


def check_scale(search: SearchConfig, monitor: str) -> None:
    """Raise ConfigError where trials are judged by a loss that the search itself defines anew for each of them."""
    changing = [key for key in search.space if key.split(".")[0] == "train" and key.split(".")[1] in LOSSES]
    if monitor == "loss" and changing:
        raise ConfigError(
            f"the search varies {', '.join(changing)}, and judges by {MONITOR}=loss: losses of trials that define it "
            "differently are on different scales",
            hint=f"judge by a score, such as {MONITOR}=auroc or dice, or leave {changing[0]} out of the space",
        )


def find_search(name: str) -> Path:
    """A path, or the name of a shipped search space. Raises ConfigError."""
    folder = shipped() / "recipes" / "search"
    for path in (Path(name).expanduser(), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"--space: there is no search space {name!r}", hint=f"{meant}there is {', '.join(known)}")


def as_setting(key: str, value: object) -> str:
    """``key=value`` as the command line takes it."""
    return f"{key}={json.dumps(value)}"


def apply(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """``config`` with settings at dotted keys, short forms included. Raises ConfigError where they cannot be."""
    tree = config.model_dump(mode="json", by_alias=True)
    for key, value in values.items():
        for target in keys.short_targets(tree, key) or (key,):
            _put(tree, target, value)
    try:
        return RunConfig.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        raise ConfigError(
            f"{', '.join(as_setting(*item) for item in values.items())}: {said}",
            hint="these values are not possible together: narrow the search space",
        ) from error


def _put(tree: Any, key: str, value: object) -> None:
    *path, name = key.split(".")
    for part in path:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    tree[int(name) if isinstance(tree, list) else name] = value


def _refuse_foreign(path: Path, key: str, tree: keys.Tree) -> None:
    where = f"{shown(path)}: space"
    if not (keys.short_targets(tree, key) or keys.find(tree, key)):
        unknown_key(where, key, "a dimension", keys.valid_names(tree))
    if isinstance(keys.find(tree, key), keys.Section | keys.Listing):
        raise ConfigError(f"{where}: {key} is a section, not a setting", hint=f"name one, such as {key}.KEY")
    if key == MONITOR:
        raise ConfigError(
            f"{where}: {key} is what trials are judged by, and scores of two metrics cannot be compared",
            hint="set it on the command line, for all trials",
        )
    if key.partition(".")[0] not in SEARCHED or key.rpartition(".")[2] == "size":
        raise ConfigError(
            f"{where}: {key} changes the data that all trials share",
            hint="search below train and model; another input size is another tune, with model.size=...",
        )


def _refuse_impossible(path: Path, key: str, value: object, run: str, overrides: Sequence[str]) -> None:
    try:
        reading = read(run, [*overrides, as_setting(key, value)])
    except ConfigError as error:
        message = error.message.removeprefix("command line: ")
        raise ConfigError(f"{shown(path)}: space: {message}", hint=error.hint) from error
    for target in keys.short_targets(dict(reading.tree), key) or (key,):
        if _at(reading.tree, target) != json.loads(json.dumps(value)):
            raise ConfigError(
                f"{shown(path)}: space: {key} is set on the command line too, as {target}",
                hint="leave it out there, or take it out of the space",
            )


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree

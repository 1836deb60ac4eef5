"""What a model asks for where nobody said otherwise: ``configs/models.yaml``.

Each entry has a model's exact name or a glob as its key, and any of ``size``, ``batch_size``, ``stats`` and ``prune``.
A model with an encoder is called ``<name>_<encoder>`` there, such as ``unet_resnet34``.
The exact name speaks first, then the longest glob that matches, then ``default``; each setting by itself.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medflow.config._yaml import read_document
from medflow.config.keys import Tree
from medflow.config.places import shown
from medflow.errors import ConfigError

_SETTINGS = ("size", "batch_size", "stats", "prune")


class Filled(NamedTuple):
    """A setting that was open, and what the table says."""

    key: str
    value: Any
    where: str


def fill_from_models(tree: Tree, table: Path) -> Iterator[Filled]:
    """Each `size`, `stats`, `train.batch_size` and `prune.enabled` of a completed tree that is null.

    One loader feeds all models of a run, so `train.batch_size` is the smallest of theirs. One of them is selected
    after the run's graph is fixed, so `prune.enabled` is true where all of them can be pruned.
    """
    open_models = [
        (index, setting)
        for index, model in enumerate(tree["models"])
        for setting in ("size", "stats")
        if model.get(setting) is None
    ]
    open_batch, open_prune = _is_open(tree, "train", "batch_size"), _is_open(tree, "prune", "enabled")
    if not (open_models or open_batch or open_prune):
        return
    entries, where = _read(table), f"configs/{table.name}"
    names = [_name(model) for model in tree["models"]]
    for index, setting in open_models:
        yield Filled(f"models.{index}.{setting}", _lookup(entries, names[index], setting, table), where)
    if open_batch:
        batches = [_lookup(entries, name, "batch_size", table) for name in names]
        yield Filled("train.batch_size", min(batches), where)
    if open_prune:
        firm = [name for name in names if not _lookup(entries, name, "prune", table)]
        yield Filled("prune.enabled", not firm, f"{where}: {firm[0]} cannot be pruned" if firm else where)


def _is_open(tree: Tree, section: str, setting: str) -> bool:
    values = tree.get(section)
    return isinstance(values, dict) and values.get(setting) is None


def _name(model: Tree) -> str:
    return "_".join(str(model[part]) for part in ("name", "encoder") if part in model)


def _read(table: Path) -> Mapping[str, Mapping[str, Any]]:
    entries = read_document(table).values
    for pattern, entry in entries.items():
        unknown = set(entry) - set(_SETTINGS) if isinstance(entry, dict) else {"not a mapping"}
        if unknown:
            raise ConfigError(
                f"{shown(table)}: {pattern}: expected a mapping with {', '.join(_SETTINGS)}, found {min(unknown)}",
                hint="see the head of that file",
            )
    return entries


def _lookup(entries: Mapping[str, Mapping[str, Any]], model: str, setting: str, table: Path) -> Any:
    globs = sorted((name for name in entries if fnmatch.fnmatchcase(model, name)), key=len, reverse=True)
    for name in (model, *globs, "default"):
        value = entries.get(name, {}).get(setting)
        if value is not None:
            return value
    raise ConfigError(
        f"{shown(table)}: default.{setting}: expected a value for {model}, found nothing",
        hint=f"add `default: {{{setting}: ...}}` there, or set it for this run",
    )

"""What a model asks for where nobody said otherwise: ``configs/models.yaml``.

Each entry has a model's exact name or a glob as its key, and any of ``size``, ``batch_size`` and ``stats``.
The exact name speaks first, then the longest glob that matches, then ``default``; each setting by itself.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medflow.config._yaml import read_document
from medflow.config.keys import Tree
from medflow.config.places import shown
from medflow.errors import ConfigError

_SETTINGS = ("size", "batch_size", "stats")


def fill_from_models(tree: Tree, table: Path) -> Iterator[tuple[str, Any]]:
    """Dotted key and value for each `size`, `stats` and `train.batch_size` of a completed tree that is null.

    One loader feeds all models of a run, so `train.batch_size` is the smallest of theirs.
    """
    open_models = [
        (index, name)
        for index, model in enumerate(tree["models"])
        for name in ("size", "stats")
        if model.get(name) is None
    ]
    training = tree.get("train")
    open_batch = isinstance(training, dict) and training.get("batch_size") is None
    if not open_models and not open_batch:
        return
    entries = _read(table)
    for index, name in open_models:
        yield f"models.{index}.{name}", _lookup(entries, str(tree["models"][index].get("name")), name, table)
    if open_batch:
        batches = [_lookup(entries, str(model.get("name")), "batch_size", table) for model in tree["models"]]
        yield "train.batch_size", min(batches)


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

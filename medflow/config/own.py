"""Datasets that the YAMLs of a folder declare."""

from __future__ import annotations

from pathlib import Path

from medflow.config._yaml import read_document
from medflow.config.places import shown
from medflow.config.reading import read
from medflow.config.sections import RunConfig
from medflow.errors import ConfigError
from medflow.progress import say


def declared_in(folder: Path) -> tuple[RunConfig, ...]:
    """Settings of every YAML of ``folder`` that has `declare`, by the file's name; of two alike, the first.

    Files that are not about medflow are none of our business; one with `declare` that cannot be read is told.
    """
    found: dict[str, RunConfig] = {}
    for path in sorted(folder.glob("*.yaml")):
        if not _declares(path):
            continue
        try:
            config = read(path.absolute().as_posix()).config
        except ConfigError as error:
            say(f"not listed: {error.message}")
            continue
        if config.dataset in found and found[config.dataset].declare != config.declare:
            say(f"not listed: {shown(path)} declares {config.dataset} in another way than an earlier file")
        found.setdefault(config.dataset, config)
    return tuple(found.values())


def _declares(path: Path) -> bool:
    try:
        return read_document(path).values.get("declare") is not None
    except ConfigError:
        return False

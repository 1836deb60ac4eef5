"""Schedules, read from a file and checked as far as this machine can: names, cron, settings, datasets, places."""

from __future__ import annotations

from pathlib import Path

from medflow.config._yaml import read_document
from medflow.config.destinations import checked, read_place
from medflow.config.places import shipped, shown
from medflow.config.sections.schedules import SchedulesConfig
from medflow.errors import ConfigError

FILE = "schedules.yaml"


def find(path: str | None, folder: Path) -> Path:
    """The given file; without one schedules.yaml of ``folder`` or the shipped one. Raises ConfigError."""
    if path is None:
        own = folder / FILE
        return own if own.is_file() else shipped() / FILE
    found = folder / Path(path).expanduser()
    if not found.is_file():
        raise ConfigError(f"{path}: there is no such file", hint=f"the shipped one is {shipped() / FILE}")
    return found


def read(path: Path) -> SchedulesConfig:
    """Schedules whose places exist and that use one stack at most. Raises ConfigError."""
    document = read_document(path)
    config = checked(document, SchedulesConfig, document.values)
    stacks = {}
    for place in config.clusters:
        stacks[read_place(place, f"{shown(path)}: on").stack] = place
    if len(stacks) > 1:
        raise ConfigError(
            f"{shown(path)}: expected schedules on one stack, found {' and '.join(stacks)}",
            hint="write one file for each, and name it: `medflow schedule apply FILE`",
        )
    return config

"""From a verb's arguments to checked settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medflow.errors import ConfigError

if TYPE_CHECKING:
    from medflow.config.reading import Reading


def read_settings(name: str, overrides: Sequence[str], source: str | None, metadata: Path | None = None) -> Reading:
    """The settings of a run, with a dataset and heads that there are. Raises ConfigError."""
    from medflow import datasets
    from medflow.config.heads import check_heads
    from medflow.config.reading import read
    from medflow.promote import check_floors, check_metrics

    reading = read(name, settings_of(overrides, source, metadata))
    config = reading.config
    declared = datasets.get(config.dataset, config.declare).card.heads
    check_heads(config, tuple(head.name for head in declared))
    check_floors(config.promote, declared)
    check_metrics(config)
    return reading


def settings_of(overrides: Sequence[str], source: str | None, metadata: Path | None = None) -> tuple[str, ...]:
    """What the command line sets, ``--source`` and ``--metadata`` included."""
    return (*_source_settings(source), *_metadata_settings(metadata), *overrides)


def _metadata_settings(metadata: Path | None) -> tuple[str, ...]:
    if metadata is None:
        return ()
    path = metadata.expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"--metadata: expected a file, found {str(metadata)!r}, which is none", hint="check the path")
    return (f"source.metadata={json.dumps(str(path))}",)


def _source_settings(source: str | None) -> tuple[str, ...]:
    if source is None:
        return ()
    if source == "kaggle":
        return ("source.kind=kaggle", "source.path=null")
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise ConfigError(
            f"--source: expected a folder, a .zip file or the word kaggle, found {source!r}, which does not exist",
            hint="check the path; `medflow phantom DATASET --to DIR` writes a folder to try with",
        )
    # Quoted as JSON, which is YAML too: a path may hold what YAML reads as something else.
    return (f"source.kind={'folder' if path.is_dir() else 'zip'}", f"source.path={json.dumps(str(path))}")

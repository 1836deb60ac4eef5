"""From a verb's arguments to checked settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medflow.errors import ConfigError

if TYPE_CHECKING:
    from medflow.config.reading import Reading

RUN_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?")


def read_settings(name: str, overrides: Sequence[str], source: str | None, metadata: str | None = None) -> Reading:
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


def settings_of(overrides: Sequence[str], source: str | None, metadata: str | None = None) -> tuple[str, ...]:
    """What the command line sets, ``--source`` and ``--metadata`` included."""
    return (*_source_settings(source), *_metadata_settings(metadata), *overrides)


def check_run_name(name: str | None, dataset: str) -> None:
    """Raise ConfigError for what a run cannot be called: folders and pages get it, `medflow report` takes it."""
    if name is None:
        return
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"--name: expected up to 80 letters, digits and . _ - that begin and end with a letter or a digit, "
            f"found {name!r}",
            hint="for example --name larger-images",
        )
    if name in (dataset, "production"):
        raise ConfigError(
            f"--name: {name!r} already means a model, expected another name",
            hint=f"for example --name {dataset}-larger-images",
        )


def _metadata_settings(metadata: str | None) -> tuple[str, ...]:
    if metadata is None:
        return ()
    if metadata.startswith("s3:"):
        return (f"source.metadata={json.dumps(_place(metadata))}",)
    path = Path(metadata).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"--metadata: expected a file, found {metadata!r}, which is none", hint="check the path")
    return (f"source.metadata={json.dumps(str(path))}",)


def _source_settings(source: str | None) -> tuple[str, ...]:
    if source is None:
        return ()
    if source == "kaggle":
        return ("source.kind=kaggle", "source.path=null")
    if source.startswith("s3:"):
        return ("source.kind=s3", f"source.path={json.dumps(_place(source))}")
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise ConfigError(
            "--source: expected a folder, a .zip file, s3://BUCKET/PREFIX or the word kaggle, "
            f"found {source!r}, which does not exist",
            hint="check the path; `medflow phantom DATASET --to DIR` writes a folder to try with",
        )
    # Quoted as JSON, which is YAML too: a path may hold what YAML reads as something else.
    return (f"source.kind={'folder' if path.is_dir() else 'zip'}", f"source.path={json.dumps(str(path))}")


def _place(uri: str) -> str:
    from medflow.s3 import Place

    return str(Place.of(uri))

"""The datasets that medflow knows. The directory is the registry: one module a dataset, each with ``SPEC``.

Nothing is imported until a dataset is asked for, so that listing names costs a directory read.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.errors import ConfigError

DEMONSTRATION = "phantom"
"""The generated dataset that `medflow demo` runs."""

__all__ = ["DEMONSTRATION", "DatasetSpec", "Listing", "Planted", "Row", "get", "module_of", "names"]


def names() -> tuple[str, ...]:
    """Every dataset's name, sorted: the modules beside this one that do not start with an underscore."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")))


def module_of(name: str) -> str:
    """Dotted module that declares dataset ``name``; the cache key of ``ingest`` covers it.

    Raises ConfigError for an unknown name, with the nearest one.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no dataset is called {name!r}", hint=f"{hint}known datasets: {', '.join(known)}")
    return f"{__name__}.{name}"


def get(name: str) -> DatasetSpec:
    """The declaration of dataset ``name``. Raises ConfigError for an unknown name, with the nearest one."""
    spec: DatasetSpec = importlib.import_module(module_of(name)).SPEC
    return spec

"""The datasets that medflow knows. The directory is the registry: one module a dataset, each with ``SPEC``.

Two more modules are generic and no datasets by themselves: ``folder`` and ``table`` turn what a YAML states
under `declare` into a dataset of that YAML's name, so that many a dataset needs no code.

Nothing is imported until a dataset is asked for, so that listing names costs a directory read.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from medflow.config.sections import Declaration
from medflow.datasets._spec import DatasetSpec, Listing, Planted, Row
from medflow.errors import ConfigError

DEMONSTRATION = "phantom"
"""The generated dataset that `medflow demo` runs."""

GENERIC = ("folder", "table")
"""Kinds of `declare`, and the modules that read them."""

__all__ = ["DEMONSTRATION", "GENERIC", "DatasetSpec", "Listing", "Planted", "Row", "get", "module_of", "names"]


def names() -> tuple[str, ...]:
    """Every dataset with a module of its own, sorted: no underscore in front of it, and not generic."""
    found = (path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    return tuple(sorted(name for name in found if name not in GENERIC))


def module_of(name: str, declared: Declaration | None = None) -> str:
    """Dotted module that reads dataset ``name``; the cache key of ``ingest`` covers it.

    Raises ConfigError for an unknown name, with the nearest one, and for a declared dataset that takes a known name.
    """
    known = names()
    if declared is not None:
        if name in known:
            raise ConfigError(
                f"{name!r} is the name of a dataset that medflow has, and the YAML declares another one under it",
                hint="call it differently in `dataset:`, or remove `declare:`",
            )
        return f"{__name__}.{declared.kind}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"no dataset is called {name!r}",
            hint=f"{hint}known datasets: {', '.join(known)}; `medflow new NAME --images DIR` declares one of your own",
        )
    return f"{__name__}.{name}"


def get(name: str, declared: Declaration | None = None) -> DatasetSpec:
    """Dataset ``name``: from its module, or as ``declared`` states it. Raises ConfigError as ``module_of``."""
    module = importlib.import_module(module_of(name, declared))
    spec: DatasetSpec = module.SPEC if declared is None else module.spec(name, declared)
    return spec

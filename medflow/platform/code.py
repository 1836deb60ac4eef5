"""What code a step reaches, as one digest.

ZenML's cache key holds a step's own source, its parameters and its inputs, not the library that a
thin step calls: an edited helper would give a stale hit. So the key is extended with the import
closure of the step's module (`medflow.imports`): every first-party module it reaches by an import
statement at any depth, also inside functions, hashed as its syntax tree without comments and
docstrings; and the version of every third-party package that those modules import.

The grain is the module. Two kinds of module are found at run time and therefore given as further
roots: a dataset's own module, and the materializers of a step's inputs and outputs. The ``__init__``
of a package counts when the package is imported, with one exception: ``steps`` and ``materializers``
only register what lies in them, and would make every step reach every materializer.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

from medflow.imports import Reached, Sources, anywhere, distributions, module_digest

REGISTRIES = ("steps", "materializers")
INSTALLED = Sources(passed_over=REGISTRIES)


def reached(roots: Iterable[str], sources: Sources = INSTALLED) -> Reached:
    """The first-party modules and third-party packages that ``roots`` reach."""
    return sources.reached(roots, anywhere)


def digest(roots: Iterable[str], sources: Sources = INSTALLED) -> str:
    """sha256 (64 hex) over everything that ``roots`` reach."""
    state = hashlib.sha256(f"python {sys.version_info.major}.{sys.version_info.minor}".encode())
    found = reached(roots, sources)
    for module, path in found.modules.items():
        state.update(f"\n{module} {module_digest(path)}".encode())
    for name, version in distributions(found.packages).items():
        state.update(f"\n{name}=={version}".encode())
    return state.hexdigest()

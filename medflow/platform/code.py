"""What code a step reaches, as one digest.

ZenML's cache key holds a step's own source, its parameters and its inputs, not the library that a
thin step calls: an edited helper would give a stale hit. So the key is extended with the import
closure of the step's module: every first-party module it reaches by an import statement at any depth,
also inside functions, hashed as its syntax tree without comments and docstrings; and the version of
every third-party package that those modules import.

The grain is the module. Two kinds of module are found at run time and therefore given as further
roots: a dataset's own module, and the materializers of a step's inputs and outputs. The ``__init__``
of a package counts when the package is imported, with one exception: ``steps`` and ``materializers``
only register what lies in them, and would make every step reach every materializer.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

FIRST_PARTY = ("medflow", "steps", "materializers", "pipelines")
REGISTRIES = ("steps", "materializers")


class Sources:
    """The first-party packages as they lie side by side in one folder. Nothing is imported to read them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def digest(self, roots: Iterable[str]) -> str:
        """sha256 (64 hex) over the closure of ``roots`` and the versions of what it imports."""
        state = hashlib.sha256(f"python {sys.version_info.major}.{sys.version_info.minor}".encode())
        modules, packages = self.closure(roots)
        for module in modules:
            path = self._file(module)
            assert path is not None
            state.update(f"\n{module} {module_digest(path)}".encode())
        for package in packages:
            state.update(f"\n{package} {_version(package)}".encode())
        return state.hexdigest()

    def closure(self, roots: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """First-party modules and third-party import names that ``roots`` reach, both sorted."""
        modules: set[str] = set()
        packages: set[str] = set()
        waiting = [module for root in roots for module in self._with_parents(root)]
        while waiting:
            module = waiting.pop()
            if module in modules:
                continue
            modules.add(module)
            for name in self._imports(module):
                if name.partition(".")[0] in FIRST_PARTY:
                    waiting += self._with_parents(name)
                else:
                    packages.add(name.partition(".")[0])
        return tuple(sorted(modules)), tuple(sorted(packages - sys.stdlib_module_names))

    def _with_parents(self, name: str) -> list[str]:
        """The module that ``name`` means, and the packages whose ``__init__`` runs on the way to it."""
        parts = name.split(".")
        chain = [".".join(parts[: length + 1]) for length in range(len(parts))]
        return [module for module in chain if module not in REGISTRIES and self._file(module)]

    def _file(self, module: str) -> Path | None:
        base = self.root.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def _imports(self, module: str) -> tuple[str, ...]:
        path = self._file(module)
        assert path is not None
        return imports(path, module if path.name == "__init__.py" else module.rpartition(".")[0])


def installed() -> Sources:
    """The sources that this process runs."""
    return Sources(Path(__file__).resolve().parents[2])


@cache
def imports(path: Path, package: str) -> tuple[str, ...]:
    """Absolute dotted names that the import statements of a file in ``package`` may mean, at any depth."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from package import module` names a module; `from module import name` does not: both are tried.
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


@cache
def module_digest(path: Path) -> str:
    """sha256 of a module's syntax tree, so that comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Field docstrings too: a bare string in a body is never read by the code that runs.
            node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree, include_attributes=False).encode()).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _distributions() -> dict[str, list[str]]:
    return {name: sorted(set(found)) for name, found in packages_distributions().items()}


def _version(package: str) -> str:
    found = []
    for distribution in _distributions().get(package, [package]):
        try:
            found.append(f"{distribution}=={version(distribution)}")
        except PackageNotFoundError:
            found.append(f"{distribution}=absent")
    return " ".join(found)

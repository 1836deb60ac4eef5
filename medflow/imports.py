"""What code a module reaches by its import statements, read from the source: nothing is run, no list is kept by hand.

Three questions are asked of it. The cache key asks what a computation *may* run, so imports inside functions count
(``anywhere``). Others ask what importing a module *does* run, so they do not (``at_import``). A package and a chunk's
key ask for every module of ours that may be needed, and for what those import at their own level (``ours_anywhere``).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_PARTY = ("medflow", "steps", "materializers", "pipelines")
Statements = Callable[[ast.Module], Iterator[ast.Import | ast.ImportFrom]]


@dataclass(frozen=True)
class Reached:
    modules: dict[str, Path]
    """Dotted name → source file of every first-party module, sorted by name."""
    packages: tuple[str, ...]
    """Top-level names of every third-party package that those modules import, sorted."""


@dataclass(frozen=True)
class Sources:
    """The first-party packages as they lie side by side in one folder."""

    root: Path = ROOT
    passed_over: tuple[str, ...] = ()
    """Packages whose ``__init__`` does not count, though what lies in them does."""

    def reached(self, roots: Iterable[str], statements: Statements) -> Reached:
        """Everything that ``roots`` import, at any distance; with a module counts the ``__init__`` of its package."""
        found: dict[str, Path] = {}
        packages: set[str] = set()
        waiting = [module for root in roots for module in self.chain(root)]
        while waiting:
            module = waiting.pop()
            if module in found:
                continue
            found[module] = self.path(module)
            for name in self.imported(module, statements):
                if name.partition(".")[0] in FIRST_PARTY:
                    waiting += self.chain(name)
                else:
                    packages.add(name.partition(".")[0])
        third = packages - sys.stdlib_module_names
        return Reached(modules=dict(sorted(found.items())), packages=tuple(sorted(third)))

    def chain(self, name: str) -> list[str]:
        """The module that ``name`` means, and the packages whose ``__init__`` runs on the way to it."""
        parts = name.split(".")
        names = [".".join(parts[: length + 1]) for length in range(len(parts))]
        return [module for module in names if module not in self.passed_over and self._find(module)]

    def imported(self, module: str, statements: Statements) -> tuple[str, ...]:
        """Absolute dotted names that a module's import statements may mean."""
        path = self.path(module)
        return names_in(path, module if path.name == "__init__.py" else module.rpartition(".")[0], statements)

    def path(self, module: str) -> Path:
        """The source file of a first-party module. Raises ModuleNotFoundError where there is none."""
        found = self._find(module)
        if found is None:
            raise ModuleNotFoundError(module)
        return found

    def _find(self, module: str) -> Path | None:
        base = self.root.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def anywhere(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement, also inside functions and for type checkers."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def at_import(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when the module is imported."""
    return (node for node in _running(tree.body) if isinstance(node, ast.Import | ast.ImportFrom))


def ours_anywhere(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Likewise, and the modules of ours that a function imports when it needs them; not what it imports of others."""
    yield from at_import(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = (node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom))
    yield from (node for node in inside if (node.module or "").partition(".")[0] in FIRST_PARTY)


@cache
def names_in(path: Path, package: str, statements: Statements) -> tuple[str, ...]:
    """Absolute dotted names that the import statements of a file in ``package`` may mean."""
    found: list[str] = []
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        else:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from package import module` names a module; `from module import name` does not: both are tried.
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


@cache
def module_digest(path: Path) -> str:
    """sha256 (64 hex) of a module's syntax tree, so that comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Field docstrings too: a bare string in a body is never read by the code that runs.
            node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree, include_attributes=False).encode()).hexdigest()


def distributions(packages: Iterable[str]) -> dict[str, str]:
    """The installed distributions that provide top-level names: distribution → version, sorted.

    Where several provide one name, as namespace packages do, all of them count.
    """
    providers = _providers()
    names = {name for package in packages for name in providers.get(package, ())}
    return {name: version(name) for name in sorted(names, key=str.lower)}


@cache
def _providers() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _running(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _running(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _running(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _running(handler.body)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

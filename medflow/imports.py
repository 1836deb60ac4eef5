"""What a module of medflow imports, read from its source: nothing is run, and no list is kept by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).parent
PACKAGE = ROOT.name


def closure(module: str) -> dict[str, Path]:
    """``module`` and every module of medflow that importing it runs: dotted name → source file, sorted.

    Imports inside functions and under ``TYPE_CHECKING`` are left out: importing the module does not run them.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _source(name)
        waiting += [item for item in _imported(found[name]) if item.split(".")[0] == PACKAGE and _exists(item)]
        waiting += [name.rsplit(".", 1)[0]] if "." in name else []
    return dict(sorted(found.items()))


def distributions(sources: dict[str, Path]) -> dict[str, str]:
    """The installed distributions that those modules import directly: name → version, sorted."""
    providers = packages_distributions()
    tops = {item.split(".")[0] for path in sources.values() for item in _imported(path)}
    names = {providers[top][0] for top in tops if top in providers and top != PACKAGE}
    return {name: version(name) for name in sorted(names, key=str.lower)}


def _imported(path: Path) -> Iterator[str]:
    """Dotted names that the module's own level imports; ``from a import b`` gives both a and a.b."""
    for node in _statements(ast.parse(path.read_bytes()).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _statements(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _path(name: str) -> Path:
    return ROOT.parent.joinpath(*name.split("."))


def _exists(name: str) -> bool:
    path = _path(name)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _source(name: str) -> Path:
    path = _path(name)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

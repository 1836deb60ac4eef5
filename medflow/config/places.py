"""Where settings lie: the configs that are shipped, and those in the working folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from medflow.errors import ConfigError

#: YAMLs in the shipped folder that describe something else than a run.
NOT_A_RUN = frozenset({"models", "schedules"})


def shipped() -> Path:
    """The shipped ``configs`` folder: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names(folder: Path) -> tuple[str, ...]:
    """What `medflow run` takes by name: YAMLs of ``folder`` (the working folder) and the shipped ones."""
    found = {path.stem for place in (folder, shipped()) for path in place.glob("*.yaml")}
    return tuple(sorted(found - NOT_A_RUN))


def find_run(name: str, folder: Path) -> Path:
    """The YAML of a run: a path, ``NAME.yaml`` in ``folder``, or a shipped one. Raises ConfigError."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = folder / Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigError(
            f"{name}: there is no such file", hint=f"name a YAML file, or one of {_listed(names(folder))}"
        )
    for path in (folder / f"{name}.yaml", shipped() / f"{name}.yaml"):
        if path.is_file() and name not in NOT_A_RUN:
            return path
    known = names(folder)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no settings are called {name!r}: expected {name}.yaml in this folder or a shipped name",
        hint=f"{meant}there is {_listed(known)}; `medflow new NAME --images DIR` makes settings for images of your own",
    )


def find_recipe(name: str, beside: Path) -> Path:
    """A recipe named by a run's YAML: a path beside it, or a shipped recipe. Raises ConfigError."""
    recipes = shipped() / "recipes"
    for path in (beside.parent / name, recipes / f"{name}.yaml"):
        if path.is_file():
            return path
    known = tuple(sorted(path.stem for path in recipes.glob("*.yaml")))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"{shown(beside)}: recipe: expected a shipped recipe or a path beside the YAML, found {name!r}",
        hint=f"{meant}there is {_listed(known)}",
    )


def targets() -> tuple[str, ...]:
    """Where a run can go: the names of ``configs/on/*.yaml``."""
    return tuple(sorted(path.stem for path in (shipped() / "on").glob("*.yaml")))


def stacks() -> Path:
    """The shipped folder of stacks: inside the package in a wheel, ``infra/stacks`` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_stacks"
    return inside if inside.is_dir() else package.parent / "infra" / "stacks"


def find_in(folder: Path, name: str, what: str) -> Path:
    """A YAML of a folder by its name, or any by its path. Raises ConfigError naming what there is."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if path.is_file():
        return path
    known = tuple(sorted(item.stem for item in folder.glob("*.yaml")))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    raise ConfigError(
        f"{what}: expected {' or '.join(known) or 'a file'} or the path of a YAML, found {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"for example {known[0] if known else 'mine.yaml'}",
    )


def shown(path: Path) -> str:
    """A path as a message names it: ``configs/…`` for a shipped file, else short where it can be."""
    if path.is_relative_to(shipped()):
        return f"configs/{path.relative_to(shipped()).as_posix()}"
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def _listed(items: tuple[str, ...]) -> str:
    return ", ".join(items) or "none"

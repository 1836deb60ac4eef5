"""Where runs go: a place (`configs/on`) and its stack (`infra/stacks`), read and refused like every other setting."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from medflow.config import keys
from medflow.config._yaml import Document, read_document
from medflow.config.places import find_in, shipped, shown, stacks
from medflow.config.refusals import impossible, unknown_key
from medflow.config.sections.base import Section
from medflow.config.sections.place import DEFAULT, STEPS, PlaceConfig
from medflow.config.sections.stack import StackConfig
from medflow.errors import ConfigError

Kind = TypeVar("Kind", bound=Section)
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def read_place(name: str, named_by: str = "--on") -> PlaceConfig:
    """A place by its name in configs/on, or by the path of a YAML. Raises ConfigError, which says who named it."""
    document = read_document(find_in(shipped() / "on", name, named_by))
    place = checked(document, PlaceConfig, _with_defaults(document.values))
    _refuse_unknown_steps(document, place)
    return place


def _refuse_unknown_steps(document: Document, place: PlaceConfig) -> None:
    """An entry for no step would be passed over, and the step that is meant would run with `default`."""
    known = (DEFAULT, *STEPS)
    names = tuple(f"steps.{step}" for step in known)
    every = f"known there are {', '.join(known)}, and uses such as train_resnet18"
    for step in place.unknown_steps():
        key = f"steps.{step}"
        unknown_key(_where(document, key), key, document.values["steps"][step], names, every=every)


def _where(document: Document, key: str) -> str:
    line = document.lines.get(key)
    return f"{shown(document.path)} line {line}" if line else shown(document.path)


def read_stack(name: str, environment: Mapping[str, str] = os.environ) -> StackConfig:
    """A stack by its name in infra/stacks, or by the path of a YAML; ``${NAME}`` is taken from ``environment``."""
    path = find_in(stacks(), name, "stack")
    document = read_document(path)
    return checked(document, StackConfig, _expanded(document.values, environment, path))


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Each step's settings over those of `default`."""
    steps = values.get("steps")
    if not isinstance(steps, dict):
        return dict(values)
    default = steps.get(DEFAULT) or {}
    if not isinstance(default, dict):
        return dict(values)
    completed = {name: {**default, **step} if isinstance(step, dict) else step for name, step in steps.items()}
    return {**values, "steps": {DEFAULT: default, **completed}}


def _expanded(value: Any, environment: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, environment, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, environment, path) for item in value]
    if not isinstance(value, str):
        return value
    absent = [name for name in VARIABLE.findall(value) if not environment.get(name)]
    if absent:
        raise ConfigError(
            f"{shown(path)}: expected the environment variable {absent[0]}, which is not set",
            hint=f"export {absent[0]}=..., or name a YAML of your own that has the value in it",
        )
    return VARIABLE.sub(lambda match: environment[match[1]], value)


def checked(document: Document, kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """``values`` of a document as a section. Raises ConfigError with file, line, key and what was meant."""
    root = keys.Section(kind)
    tree = keys.complete(dict(values), root)

    where = partial(_where, document)
    names = _names(tree, root)
    for key, node, value in keys.walk(tree, root):
        if node is None:
            unknown_key(where(key), key, value, names, every=_beside(key, names))
    try:
        return kind.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        impossible(error, tree, where, root, every="write what is expected, and run the command again")


def _beside(key: str, names: tuple[str, ...]) -> str:
    """What may be written where an unknown key is."""
    section = key.rpartition(".")[0]
    return (
        f"known there are {', '.join(name.rpartition('.')[2] for name in names if name.rpartition('.')[0] == section)}"
    )


def _names(tree: keys.Tree, root: keys.Section) -> tuple[str, ...]:
    """Every name that may be set: of each section that stands there, required settings included."""
    sections = [("", root), *((f"{key}.", node) for key, node, _ in keys.walk(tree, root))]
    return tuple(
        f"{prefix}{name}" for prefix, node in sections if isinstance(node, keys.Section) for name in node.fields
    )

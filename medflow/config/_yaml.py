"""YAML as its readers expect it: 1e-4 is a number, `off` is text, a key stands once, and every key knows its line.

PyYAML follows YAML 1.1, where ``1e-4`` is text, ``off`` is false and ``010`` is eight. Settings are
read by the rules of YAML 1.2's core schema instead (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from medflow.errors import ConfigError


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str | None, list[Any]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is no name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _number(kind: type[int | float]) -> Any:
    return lambda loader, node: kind(loader.construct_scalar(node).replace("_", ""))


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.\d*|\.\d+|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _number(int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(float))


@dataclass(frozen=True)
class Document:
    """One YAML file: its mapping, and the line (from 1) of every dotted key."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="name a readable YAML file in UTF-8") from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: no valid YAML: {_in_one_line(error)}", hint="check indentation and quotes there"
        ) from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {values!r}", hint="write `key: value` lines")
    lines: dict[str, int] = {}
    if node is not None:
        _note_lines(node, "", lines)
    return Document(path=path, values=values, lines=lines)


def read_value(text: str) -> Any:
    """The value of ``key=text`` on the command line, read as YAML. Raises ConfigError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"command line: {text!r} is no valid YAML value: {_in_one_line(error)}",
            hint="quote it for the shell, for example 'models=[{kind: timm, name: resnet18}]'",
        ) from error


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[f"{prefix}{key.value}"] = key.start_mark.line + 1
            _note_lines(value, f"{prefix}{key.value}.", lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _note_lines(value, f"{prefix}{index}.", lines)


def _in_one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem

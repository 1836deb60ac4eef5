"""Which dotted keys a run's settings have, and what stands behind each.

Settings are handled here as a *tree* of plain dicts and lists, as YAML gives them; the sections of
``medflow.config.sections`` are its grammar. A dotted key names a place in the tree: ``train.stages.0.lr``.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from medflow.config.sections import ModelConfig, RunConfig, Stage, TrainConfig

Tree = dict[str, Any]

#: Model kind → its section, from the union in ``sections``: a new family needs no line here.
MODEL_KINDS: Mapping[str, type[BaseModel]] = {
    member.model_fields["kind"].default: member for member in get_args(get_args(ModelConfig)[0])
}


@dataclass(frozen=True)
class Section:
    """A mapping with fixed keys."""

    model: type[BaseModel]

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        return {field.alias or name: field for name, field in self.model.model_fields.items()}


@dataclass(frozen=True)
class Listing:
    """A list whose entries are sections; those of ``models`` differ by `kind`."""

    entry: type[BaseModel] | None

    def section(self, value: Any) -> Section | None:
        if self.entry is not None:
            return Section(self.entry)
        kind = value.get("kind") if isinstance(value, dict) else None
        return Section(MODEL_KINDS[kind]) if isinstance(kind, str) and kind in MODEL_KINDS else None


@dataclass(frozen=True)
class Choice:
    """A section whose fields depend on its `kind`, or nothing. Where the kind is known it is a ``Section``."""

    kinds: Mapping[str, type[BaseModel]]

    def section(self, value: Any) -> Section | None:
        kind = value.get("kind") if isinstance(value, dict) else None
        return Section(self.kinds[kind]) if isinstance(kind, str) and kind in self.kinds else None


@dataclass(frozen=True)
class Free:
    """A mapping whose keys the user chooses, such as head names. ``forms`` are what a value may be."""

    forms: tuple[Node, ...]

    def node(self, value: Any) -> Node:
        """What a value stands for: a section if it is a mapping, a listing if it is a list, where it may be either."""
        wanted = Listing if isinstance(value, list) else Section
        return next((form for form in self.forms if isinstance(form, wanted)), self.forms[0])


@dataclass(frozen=True)
class Leaf:
    """A value, or a list of plain values."""

    annotation: Any

    @property
    def is_text(self) -> bool:
        kinds = set(get_args(self.annotation)) or {self.annotation}
        return kinds <= {str, types.NoneType}


Node = Section | Listing | Choice | Free | Leaf
ROOT = Section(RunConfig)


def node_of(annotation: Any) -> Node:
    """What a field's annotation allows."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Section(annotation)
    if get_origin(annotation) is dict:
        return Free(_forms(get_args(annotation)[1]))
    if get_origin(annotation) is tuple:
        inner = node_of(get_args(annotation)[0])
        if isinstance(inner, Section):
            return Listing(inner.model)
        if isinstance(inner, Choice):
            return Listing(None)
    members = _members(annotation)
    if members and all("kind" in member.model_fields for member in members):
        return Choice({member.model_fields["kind"].default: member for member in members})
    return Leaf(annotation)


def _members(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The sections of a union, None aside; empty where it holds anything else, or is no union."""
    found: list[Any] = []
    waiting = list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else []
    while waiting:
        item = waiting.pop(0)
        if get_origin(item) is Annotated:
            item = get_args(item)[0]
        if get_origin(item) in (Union, types.UnionType):
            waiting = [*get_args(item), *waiting]
        elif item is not types.NoneType:
            found.append(item)
    return tuple(found) if all(isinstance(item, type) and issubclass(item, BaseModel) for item in found) else ()


def _forms(annotation: Any) -> tuple[Node, ...]:
    """What a value may be: each member of a union, or the one type."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
    return tuple(node_of(member) for member in members)


def complete(tree: Tree, section: Section = ROOT) -> Tree:
    """``tree`` with every absent setting at its default; required settings stay absent.

    Values of a wrong type are left as they are: ``RunConfig`` refuses them later, by name.
    """
    filled: Tree = dict(tree)
    for name, field in section.fields.items():
        if name not in filled:
            if field.is_required():
                continue
            filled[name] = to_jsonable_python(field.get_default(call_default_factory=True), by_alias=True)
        filled[name] = _complete_value(filled[name], node_of(field.annotation))
    return filled


def _complete_value(value: Any, node: Node) -> Any:
    if isinstance(node, Choice):
        node = node.section(value) or node
    if isinstance(node, Section) and isinstance(value, dict):
        return complete(value, node)
    if isinstance(node, Free) and isinstance(value, dict):
        return {name: _complete_value(item, node.node(item)) for name, item in value.items()}
    if isinstance(node, Listing) and isinstance(value, list):
        return [
            complete(item, inner) if (inner := node.section(item)) and isinstance(item, dict) else item
            for item in value
        ]
    return value


def find(tree: Tree, key: str, root: Section = ROOT) -> Node | None:
    """What stands at a dotted key of a completed tree, or None where it is no setting."""
    node: Node | None = root
    value: Any = tree
    for name in key.split("."):
        node, value = _child(node, value, name)
        if node is None:
            return None
    return node


def _child(node: Node | None, value: Any, name: str) -> tuple[Node | None, Any]:
    if isinstance(node, Section) and name in node.fields:
        inner = value.get(name) if isinstance(value, dict) else None
        found = node_of(node.fields[name].annotation)
        return (found.section(inner) or found if isinstance(found, Choice) else found), inner
    if isinstance(node, Listing) and isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        entry = value[int(name)]
        return node.section(entry), entry
    if isinstance(node, Free) and name:
        entry = value.get(name) if isinstance(value, dict) else None
        return node.node(entry), entry
    if isinstance(node, Leaf) and isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        return Leaf(object), value[int(name)]
    return None, None


def field_at(tree: Tree, key: str, root: Section = ROOT) -> FieldInfo | None:
    """The field that declares a dotted key, or its nearest parent that is one (``channels.2`` → ``channels``)."""
    parent, _, name = key.rpartition(".")
    node = find(tree, parent, root) if parent else root
    if isinstance(node, Section):
        return node.fields.get(name)
    return field_at(tree, parent, root) if parent else None


def walk(value: Any, node: Node = ROOT, prefix: str = "") -> Iterator[tuple[str, Node | None, Any]]:
    """Every dotted key that stands in a tree, what it is (None: no setting) and its value; parents first."""
    names: list[str] = []
    if isinstance(value, dict) and not isinstance(node, Leaf):
        names = list(value)
    elif isinstance(value, list) and isinstance(node, Listing):
        names = [str(index) for index in range(len(value))]
    for name in names:
        inner, _ = _child(node, value, name)
        entry = value[int(name)] if isinstance(value, list) else value[name]
        yield f"{prefix}{name}", inner, entry
        if inner is not None:
            yield from walk(entry, inner, f"{prefix}{name}.")


# -- short forms and names ------------------------------------------------------------------------


def short_targets(tree: Tree, key: str) -> tuple[str, ...] | None:
    """The long keys that a short form stands for: ``model.KEY`` (models that have KEY), ``train.KEY`` (every stage).

    None where ``key`` is no short form; empty where it is one and no listed model has KEY.
    """
    start, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if start == "model" and name in _model_keys():
        longs = [f"models.{index}.{rest}" for index, _ in enumerate(_entries(tree, "models"))]
        return tuple(long for long in longs if find(tree, long) is not None)
    if start == "train" and rest in Stage.model_fields and rest not in TrainConfig.model_fields:
        stages = _entries(tree.get("train", {}), "stages")
        return tuple(f"train.stages.{index}.{rest}" for index, _ in enumerate(stages))
    return None


def _entries(tree: Any, name: str) -> list[Any]:
    value = tree.get(name) if isinstance(tree, dict) else None
    return value if isinstance(value, list) else []


def _model_keys() -> frozenset[str]:
    return frozenset(name for kind in MODEL_KINDS.values() for name in kind.model_fields)


def valid_names(tree: Tree) -> tuple[str, ...]:
    """Every dotted key of a completed tree, and the short forms."""
    longs = [key for key, node, _ in walk(tree) if node is not None] + list(ROOT.fields)
    listed = {name for item in _entries(tree, "models") if isinstance(item, dict) for name in item}
    shorts = [f"model.{name}" for name in listed & _model_keys()]
    shorts += [f"train.{name}" for name in Stage.model_fields if name not in TrainConfig.model_fields]
    return tuple(dict.fromkeys([*longs, "recipe", *sorted(shorts)]))


def nearest(key: str, names: tuple[str, ...]) -> str:
    """The valid name most like ``key``: as a whole, in its last part, and in the section it stands in."""

    def likeness(name: str) -> float:
        (section, _, last), (its_section, _, its_last) = key.rpartition("."), name.rpartition(".")
        pairs = ((key, name, 1.0), (last, its_last, 1.0), (section, its_section, 0.5))
        return sum(weight * difflib.SequenceMatcher(None, one, other).ratio() for one, other, weight in pairs)

    return max(names, key=likeness)

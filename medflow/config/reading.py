"""From a YAML and the command line to a ``RunConfig``; whatever cannot be meant is refused at this door.

Layers, each over the one before: defaults < recipe (named by ``recipe:``) < the dataset's YAML < command line.
What is then still open, a model's `size` and `stats`, `train.batch_size` and `prune.enabled`,
comes from ``configs/models.yaml``.
Mappings merge key by key, but a loss of another `kind` begins anew; a list replaces the list below it. A dotted key
in a YAML (``train.stages.0.lr: 3.0e-4``) sets that one place after the file's other keys.

On the command line alone there are two short forms: ``model.KEY=v`` sets KEY in every listed model that has it,
``train.KEY=v`` in every stage. A long key wins over a short form, and a longer key over a shorter one, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Never, get_args

from pydantic import ValidationError

from medflow.config import keys
from medflow.config._yaml import Document, read_document, read_value
from medflow.config.defaults import fill_from_models
from medflow.config.keys import Tree
from medflow.config.places import find_recipe, find_run, shipped, shown
from medflow.config.refusals import NOTHING, impossible, refuse, unknown_key
from medflow.config.sections import RunConfig
from medflow.errors import ConfigError

Layer = Literal["recipe", "yaml", "command line", "models.yaml"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
EXAMPLE = "`models: [{kind: timm, name: resnet18}]`"


@dataclass(frozen=True)
class Origin:
    """Which layer set a value, and where: a file with its line, or the argument as typed."""

    layer: Layer
    where: str


@dataclass(frozen=True)
class Reading:
    """A run's settings, and where each came from. A dotted key that is absent from ``origins`` is a default."""

    config: RunConfig
    file: Path
    origins: Mapping[str, Origin]
    tree: Mapping[str, Any]
    """The merged settings as plain JSON types."""
    defaults: Mapping[str, Any]
    """The same keys at their defaults; required settings are absent."""


@dataclass
class _Merge:
    """The tree so far, always completed with defaults, and the origin of each leaf that a layer set."""

    tree: Tree = field(default_factory=lambda: keys.complete({}))
    origins: dict[str, Origin] = field(default_factory=dict)

    def put(self, key: str, value: Any, origin: Origin) -> None:
        """Set one place. Mappings merge, everything else replaces. The key's parent must exist.

        A loss of another `kind` takes none of the old one's settings, which may mean nothing to it.
        """
        parent, name = self._parent(key)
        if name == "kind" and self._is_named_by_user(key) and parent.get("kind") not in (None, value):
            parent.clear()
            self._forget_below(key.rpartition(".")[0])
        before = parent[int(name)] if isinstance(parent, list) else parent.get(name)
        if isinstance(before, dict) and value is None:
            return  # `train:` with all its lines commented out
        if isinstance(before, dict) and isinstance(value, dict):
            for inner, item in sorted(value.items(), key=lambda item: item[0] != "kind"):  # before what it clears
                if "." in inner:
                    refuse(
                        origin.where,
                        f"{key}.{inner}",
                        "one name",
                        inner,
                        hint="dotted keys stand at the top level of a YAML",
                    )
                self.put(f"{key}.{inner}", item, origin)
            return
        parent[int(name) if isinstance(parent, list) else name] = value
        self._forget_below(key)
        for leaf in _leaves(value, key):
            self.origins[leaf] = origin

    def _parent(self, key: str) -> tuple[Any, str]:
        *path, name = key.split(".")
        at: Any = self.tree
        for part in path:
            # A name that the user chooses may be opened by a key below it: `train.losses.lung.kind=tversky`.
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        return at, name

    def _is_named_by_user(self, key: str) -> bool:
        """Whether a key stands in a section whose name the user chose, as those of `train.losses`."""
        return key.count(".") > 1 and isinstance(keys.find(self.tree, key.rsplit(".", 2)[0]), keys.Free)

    def _forget_below(self, key: str) -> None:
        for known in [known for known in self.origins if known == key or known.startswith(f"{key}.")]:
            del self.origins[known]

    def where(self, key: str) -> str:
        """Where a key was set, or what stands below it (the last layer that spoke), or above it; empty if nowhere."""
        below = [origin for known, origin in self.origins.items() if f"{known}.".startswith(f"{key}.")]
        if below:
            spoken = [
                origin for origin in below if origin.layer != "models.yaml"
            ] or below  # a table fills, it never errs
            return max(spoken, key=lambda origin: LAYERS.index(origin.layer)).where
        parent = key.rpartition(".")[0]
        return self.where(parent) if parent else ""

    def settle(self) -> None:
        """Fill in defaults of what a layer opened, such as the fields of a new stage."""
        self.tree = keys.complete(self.tree)


def load(name_or_path: str | Path, overrides: Sequence[str] = (), *, folder: Path | None = None) -> RunConfig:
    """The settings of a run, checked and complete.

    ``name_or_path`` is a YAML's path, or a name: NAME.yaml in ``folder`` (default: the working folder), else a
    shipped one. ``overrides`` are ``key=value`` as typed, values in YAML. Raises ConfigError that names file, key,
    what was expected, what was found and the nearest valid name.
    """
    return read(name_or_path, overrides, folder=folder).config


def read(name_or_path: str | Path, overrides: Sequence[str] = (), *, folder: Path | None = None) -> Reading:
    """``load``, telling where each value came from."""
    file = find_run(str(name_or_path), folder or Path.cwd())
    pairs = [_pair(text) for text in overrides]
    document = read_document(file)
    merge = _Merge()
    for recipe in _recipes(document, pairs):
        _merge_document(merge, read_document(find_recipe(recipe, file)), "recipe")
    _merge_document(merge, document, "yaml")
    _merge_command_line(merge, [pair for pair in pairs if pair.key != "recipe"])
    _require_models(merge, file)
    defaults = keys.complete({"models": [_bare(model) for model in merge.tree["models"]]})
    _write_numbers_as_text(merge.tree)
    for filled in fill_from_models(merge.tree, shipped() / "models.yaml"):
        merge.put(filled.key, filled.value, Origin("models.yaml", filled.where))
    config = _validated(merge, file)
    tree = config.model_dump(mode="json", by_alias=True)
    return Reading(config=config, file=file, origins=merge.origins, tree=tree, defaults=defaults)


# -- the layers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """One ``key=value`` of the command line."""

    key: str
    value: Any
    typed: str

    @property
    def origin(self) -> Origin:
        return Origin("command line", "command line")


def _pair(text: str) -> _Pair:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"command line: expected key=value, found {text!r}",
            hint="for example train.epochs=2; options such as --on start with two dashes",
        )
    return _Pair(key=key, value=read_value(value), typed=text)


def _recipes(document: Document, pairs: Sequence[_Pair]) -> tuple[str, ...]:
    typed = [pair.value for pair in pairs if pair.key == "recipe"]
    value = typed[-1] if typed else document.values.get("recipe")
    where = "command line" if typed else shown(document.path)
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in items):
        refuse(where, "recipe", "the name of a recipe, or a list of names", value, hint="see configs/recipes")
    return tuple(items)


def _merge_document(merge: _Merge, document: Document, layer: Layer) -> None:
    """Merge one file: its nested keys first, then its dotted ones."""
    values = {name: value for name, value in document.values.items() if name != "recipe"}
    nested = {name: value for name, value in values.items() if "." not in str(name)}
    dotted = {name: value for name, value in values.items() if "." in str(name)}
    for settings in (nested, dotted):
        for name, value in sorted(settings.items(), key=lambda item: _turn(str(item[0]))):
            if keys.find(merge.tree, str(name)) is None:
                unknown_key(_where(document, str(name)), str(name), value, keys.valid_names(merge.tree))
            merge.put(str(name), value, Origin(layer, _where(document, str(name))))
        merge.settle()
        _point_at_lines(merge, document, layer)
        _refuse_shapes(merge)


def _turn(key: str) -> tuple[int, bool]:
    """Shorter keys first, and of equals a `kind` before the settings that depend on it."""
    return key.count("."), not key.endswith(".kind")


def _where(document: Document, key: str) -> str:
    line = document.lines.get(key)
    return f"{shown(document.path)} line {line}" if line else shown(document.path)


def _point_at_lines(merge: _Merge, document: Document, layer: Layer) -> None:
    """Refine the origins of a nested block from the block's line to each key's own."""
    file = shown(document.path)
    for key, origin in merge.origins.items():
        if origin.layer == layer and origin.where.startswith(f"{file} line") and key in document.lines:
            merge.origins[key] = Origin(layer, f"{file} line {document.lines[key]}")


def _refuse_shapes(merge: _Merge) -> None:
    """Refuse what a layer brought that is no setting, or not a mapping or list where one must be."""
    for key, node, value in keys.walk(merge.tree):
        if isinstance(node, keys.Section | keys.Free) and not isinstance(value, dict):
            refuse(
                merge.where(key), key, "a mapping", value, hint=f"write its settings below `{key}:`, or {key}.KEY=value"
            )
        if isinstance(node, keys.Listing) and not isinstance(value, list):
            refuse(
                merge.where(key),
                key,
                "a list",
                value,
                hint="write one `- ...` entry a line, or [...] on the command line",
            )
        if node is None and _is_model(key):
            _refuse_kind(merge, key, value, tuple(keys.MODEL_KINDS), f"for example {EXAMPLE}")
        if isinstance(node, keys.Choice) and value is not None:
            _refuse_kind(merge, key, value, tuple(node.kinds), "`medflow new NAME --images DIR` writes it")
        if node is None:
            unknown_key(merge.where(key), key, value, keys.valid_names(merge.tree))


def _is_model(key: str) -> bool:
    start, _, index = key.partition(".")
    return start == "models" and index.isdecimal()


def _refuse_kind(merge: _Merge, key: str, section: Any, kinds: tuple[str, ...], example: str) -> Never:
    """A section's other settings depend on its kind, so nothing is said of them before."""
    found = section.get("kind", NOTHING) if isinstance(section, dict) else section
    refuse(
        merge.where(key),
        f"{key}.kind",
        " or ".join(kinds),
        found,
        hint=f"did you mean {keys.nearest(str(found), kinds)}?"
        if isinstance(found, str) and found != NOTHING
        else example,
    )


def _merge_command_line(merge: _Merge, pairs: Sequence[_Pair]) -> None:
    """Long keys first, shorter before longer; then short forms, where no long key has spoken."""
    longs = [pair for pair in pairs if keys.short_targets(merge.tree, pair.key) is None]
    for pair in sorted(longs, key=lambda pair: _turn(pair.key)):
        if keys.find(merge.tree, pair.key) is None:
            unknown_key("command line", pair.key, pair.value, keys.valid_names(merge.tree))
        merge.put(pair.key, pair.value, pair.origin)
        merge.settle()
        _refuse_shapes(merge)
    spoken = {key for key, origin in merge.origins.items() if origin.layer == "command line"}
    for pair in pairs:
        targets = keys.short_targets(merge.tree, pair.key)
        if targets is None:
            continue
        if not targets:
            listed = ", ".join(
                str(model.get("name")) for model in merge.tree.get("models", []) if isinstance(model, dict)
            )
            refuse(
                "command line", pair.key, "a setting of a listed model", pair.typed, hint=f"listed: {listed or 'none'}"
            )
        for target in targets:
            if not any(target == key or target.startswith(f"{key}.") or key.startswith(f"{target}.") for key in spoken):
                merge.put(target, pair.value, pair.origin)
    merge.settle()
    _refuse_shapes(merge)


# -- what the whole must be -----------------------------------------------------------------------


def _require_models(merge: _Merge, file: Path) -> None:
    if not merge.tree.get("models"):
        found = merge.tree.get("models", NOTHING)
        refuse(
            merge.where("models") or shown(file),
            "models",
            "a list of at least one model",
            found,
            hint=f"for example {EXAMPLE}",
        )


def _bare(model: Mapping[str, Any]) -> Tree:
    return {"kind": model["kind"]}


def _write_numbers_as_text(tree: Tree) -> None:
    """``version: 5`` means the text 5: a whole number where only text is possible is taken as written."""
    for key, node, value in list(keys.walk(tree)):
        if isinstance(node, keys.Leaf) and node.is_text and isinstance(value, int) and not isinstance(value, bool):
            parent, _, name = key.rpartition(".")
            _value_at(tree, parent)[name] = str(value)


def _validated(merge: _Merge, file: Path) -> RunConfig:
    # Strict JSON: a list is a tuple there, and nothing else is converted ("3" is no number, true is no 1).
    try:
        return RunConfig.model_validate_json(json.dumps(merge.tree), strict=True)
    except ValidationError as error:
        impossible(error, merge.tree, lambda key: merge.where(key) or shown(file))


def _value_at(tree: Any, key: str) -> Any:
    at = tree
    for part in filter(None, key.split(".")):
        at = at[int(part)] if isinstance(at, list) else at[part]
    return at


def _leaves(value: Any, key: str) -> Iterator[str]:
    """Dotted keys of the leaves of ``value``; a list of plain values is one leaf."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = tuple(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = tuple(enumerate(value))
    if not items:
        yield key
    for name, item in items:
        yield from _leaves(item, f"{key}.{name}")

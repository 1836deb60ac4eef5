"""A run's settings as YAML that can be run again; whatever is not the default says where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from medflow.config.keys import Tree
from medflow.config.reading import Origin, Reading
from medflow.config.sections import RunConfig
from medflow.config.sections.place import PlaceConfig

MARK = "# <- "


def as_yaml(reading: Reading) -> str:
    """The merged settings, one a line; `# <- place` behind each that differs from its default."""
    return "\n".join(_lines(reading, reading.tree, reading.defaults, "", 0)) + "\n"


def config_yaml(config: RunConfig) -> str:
    """The same of settings whose files are no longer known: every value, and no places."""
    tree = config.model_dump(mode="json", by_alias=True)
    return as_yaml(Reading(config=config, file=Path(), origins={}, tree=tree, defaults={}))


def place_lines(name: str, place: PlaceConfig, uses: Mapping[str, str]) -> Iterator[str]:
    """What each use of a step gets at a place, as comments: where a run goes is no part of its settings."""
    at_a_time = f"at most {place.parallel} steps at a time" if place.parallel else "as many steps at a time as can be"
    yield f"# On {name}: stack {place.stack}, {at_a_time}. Each step gets:"
    given = {"orchestrator": place.orchestrator, **place.of_steps(uses)}
    width = max(map(len, given))
    for use, asked in given.items():
        values = {key: value for key, value in asked.model_dump(mode="json").items() if value not in (None, {}, [])}
        yield f"# {use:<{width}}  {_scalar(values)}"


def origin_of(reading: Reading, key: str) -> Origin | None:
    """Where the value at a dotted key was set, or None for a default."""
    below = [origin for known, origin in reading.origins.items() if known == key or known.startswith(f"{key}.")]
    return below[-1] if below else None


def origins(reading: Reading) -> Mapping[str, str]:
    """Dotted key of each value that some layer set → layer and place."""
    return {key: f"{origin.layer} ({origin.where})" for key, origin in sorted(reading.origins.items())}


def _lines(reading: Reading, value: Any, default: Any, prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, item in value.items():
        key = f"{prefix}{name}"
        usual = default.get(name, _ABSENT) if isinstance(default, dict) else _ABSENT
        if isinstance(item, dict) and item:
            yield f"{indent}{name}:"
            yield from _lines(reading, item, usual, f"{key}.", depth + 1)
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            yield f"{indent}{name}:"
            yield from _entries(reading, item, usual, key, depth)
        else:
            yield f"{indent}{name}: {_scalar(item)}{_mark(reading, key, item, usual)}"


def _entries(reading: Reading, items: list[Tree], default: Any, key: str, depth: int) -> Iterator[str]:
    for index, item in enumerate(items):
        usual = default[index] if isinstance(default, list) and index < len(default) else _ABSENT
        first, *others = _lines(reading, item, usual, f"{key}.{index}.", depth + 1)
        yield f"{'  ' * depth}- {first.strip()}"
        yield from others


_ABSENT = object()


def _mark(reading: Reading, key: str, value: Any, default: Any) -> str:
    origin = origin_of(reading, key)
    if origin is None or value == default:
        return ""
    return f"  {MARK}{origin.where}"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return json.dumps(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
        .removesuffix("...\n")
        .strip()
    )

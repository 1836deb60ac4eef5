"""How a setting is refused: where, which key, what was expected, what was found, and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any, Never

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from medflow.config import keys
from medflow.errors import ConfigError

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} entry",
}


NOTHING = "nothing"
"""What was found where a key is absent; shown without quotes."""


def refuse(where: str, key: str, expected: str, found: Any, *, hint: str) -> Never:
    raise ConfigError(f"{where}: {key}: expected {expected}, found {_shown(found)}", hint=hint)


SHOWN = "`medflow show NAME` prints every setting"


def unknown_key(where: str, key: str, found: Any, names: tuple[str, ...], *, every: str = SHOWN) -> Never:
    """``every`` says where all names are to be seen."""
    near = keys.nearest(key, names)
    raise ConfigError(
        f"{where}: {key}: expected a setting's name, found an unknown one (with the value {_shown(found)})",
        hint=f"did you mean {near}? {every}",
    )


def impossible(
    error: ValidationError,
    tree: keys.Tree,
    where: Callable[[str], str],
    root: keys.Section = keys.ROOT,
    *,
    every: str = SHOWN,
) -> Never:
    """Turn pydantic's refusal into ours: the first one in full, and how many more there are."""
    first, *others = error.errors(include_url=False)
    # pydantic also calls a list too short that loses its only entry to the first error.
    others = [other for other in others if other["type"] != "too_short" or other["loc"] != first["loc"][:1]]
    key = _dotted(first)
    more = f" (and {len(others)} more)" if others else ""
    field = keys.field_at(tree, key, root) if key else None
    about = _about(field)
    if first["type"] == "value_error":
        message = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        raise ConfigError(f"{where(key)}: {message}{more}", hint=about or every)
    if first["type"] == "missing":
        raise ConfigError(
            f"{where(key)}: {key}: expected a value, found nothing{more}", hint=about or f"write `{key}: ...`"
        )
    found = f"{_shown(first['input'])}{more}"
    raise ConfigError(
        f"{where(key)}: {key}: expected {_expected(first)}, found {found}",
        hint=_did_you_mean(first) or about or every,
    )


def _about(field: FieldInfo | None) -> str:
    """What a setting is, from its docstring, and its default where that is one plain value."""
    if field is None:
        return ""
    words = " ".join((field.description or "").split())
    if not isinstance(field.default, str | int | float):
        return words
    default = f"default is {json.dumps(field.default)}"
    return f"{words} The {default}" if words else f"the {default}"


def _dotted(error: ErrorDetails) -> str:
    """pydantic's location without the kind or form behind ``models.<index>``, ``declare``, ``train.losses.<head>``."""
    parts = [str(part) for part in error["loc"]]
    if len(parts) > 2 and parts[0] == "models" and parts[2] in keys.MODEL_KINDS:
        del parts[2]
    if len(parts) > 1 and parts[0] == "declare":
        del parts[1]
    if len(parts) > 3 and parts[:2] == ["train", "losses"] and parts[3] in ("one", "sum"):
        del parts[3]
    return ".".join(parts)


def _expected(error: ErrorDetails) -> str:
    template = _EXPECTED.get(error["type"])
    if template is None:
        return error["msg"].removeprefix("Input should be ")
    return template.format(
        **{name: f"{value:g}" if isinstance(value, float) else value for name, value in error.get("ctx", {}).items()}
    )


def _did_you_mean(error: ErrorDetails) -> str:
    if error["type"] != "literal_error":
        return ""
    allowed = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(str(error["input"]), allowed, n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value == NOTHING else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."

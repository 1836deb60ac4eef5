"""What every record is: frozen, typed, and hashed by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import core_schema


class _Beside:
    """Marks a field that travels with a record and does not count in its digest."""


BESIDE = _Beside()


class Record(BaseModel):
    """A frozen value with a content digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def digest(self) -> str:
        """sha256 (64 hex) of the fields that count, as sorted JSON."""
        return digest_of(content(self))


class Whole:
    """A big record: pydantic (which checks step signatures) looks at its class, and not inside.

    Its fields have types, such as Arrow's, that this module does not import.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.is_instance_schema(cls)


def content(value: Any) -> Any:
    """``value`` as plain JSON types, without the fields marked ``BESIDE``, at any depth."""
    if isinstance(value, Record):
        fields = type(value).model_fields
        return {name: content(getattr(value, name)) for name in fields if BESIDE not in fields[name].metadata}
    if isinstance(value, BaseModel):
        return content(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [content(item) for item in value]
    return value


def digest_of(value: Any) -> str:
    """sha256 (64 hex) of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (64 hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""What the columns of somebody's table are: labels, or one of the things that a manifest has a place for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medflow.datasets._cells import UNKNOWN, flag, sex, years
from medflow.datasets._declared import split_of
from medflow.datasets._tables import Table

MOST_LABELS = 200
SEPARATORS = ("|", ";", ",")
STRONG = frozenset(
    ("label", "labels", "class", "classes", "category", "diagnosis", "diagnoses", "dx", "finding", "findings", "target",
     "pathology", "disease", "finding label", "finding labels", "image label", "class name", "class label")
)  # fmt: skip
"""Names of columns that hold the label, in lower case and with spaces for everything that is no letter."""
STRONGEST = 2
WEAK = re.compile(r"label|class|diagnos|finding|disease|patholog|category|target|\bdx\b|grade|type|outcome")
NONE_LABELS = frozenset({"no finding", "no findings", "none", "normal", "healthy", "negative", "no disease"})


@dataclass(frozen=True)
class LabelColumn:
    """One column of words."""

    column: str
    labels: tuple[str, ...]
    separator: str | None
    none_label: str | None


@dataclass(frozen=True)
class FlagColumns:
    """One column of 0 and 1 for each label."""

    labels: tuple[str, ...]
    exclusive: bool
    empty: tuple[str, ...]
    """Columns that never hold a 1."""


def plain(name: str) -> str:
    """A column's name in lower case, with one space for everything that is no letter or digit."""
    return " ".join(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


# -- what is known of a person or an image ----------------------------------------------------------

_NAMES = {
    "group": re.compile(
        r"^(patients?|subjects?|lesions?|cases?|persons?|participants?)( ?(ids?|no|nr|number|key|code))?$"
    ),
    "age": re.compile(r"\bages?\b"),
    "sex": re.compile(r"\b(sex|gender)\b"),
    "view": re.compile(r"\b(view|projection)\b"),
    "site": re.compile(r"locali[sz]ation|anatom|body part|body site|\blocation\b|\bsite\b"),
    "split": re.compile(r"\b(split|subset|partition|fold|set)\b"),
    "text": re.compile(r"report|impression|caption|narrative|\bnotes?\b"),
    "source": re.compile(r"\b(source|dataset|url|hospital|institution|centre|center)\b"),
}
_FEWEST_LETTERS = 12


def known_columns(table: Table, taken: Sequence[str]) -> dict[str, str]:
    """Group, age, sex, … → column, by its name and by what its cells are; the first that fits."""
    found: dict[str, str] = {}
    for name, pattern in _NAMES.items():
        for column in table.columns:
            if column not in (*taken, *found.values()) and pattern.search(plain(column)) and _fits(name, table, column):
                found[name] = column
                break
    parts = [column for column in table.columns if column not in (*taken, *found.values()) and _is_split(table, column)]
    return found | ({"split": parts[0]} if parts and "split" not in found else {})


def _is_split(table: Table, column: str) -> bool:
    """Whatever it is called: its words are those of a split, and more than one of them."""
    return _fits("split", table, column) and len({split_of(cell) for cell in table.column(column)} - {None}) > 1


def _fits(name: str, table: Table, column: str) -> bool:
    cells = [cell for cell in table.column(column) if cell.lower() not in UNKNOWN]
    if not cells:
        return False
    if name == "age":
        return _most(years(cell)[1] for cell in cells)
    if name == "sex":
        return _most(sex(cell) in {"F", "M", None} for cell in cells)
    if name == "split":
        return _most(split_of(cell) is not None for cell in cells)
    if name == "text":
        return sum(map(len, cells)) > _FEWEST_LETTERS * len(cells)
    return True


def _most(facts: Iterator[bool]) -> bool:
    every = list(facts)
    return sum(every) > 0.9 * len(every)


# -- labels --------------------------------------------------------------------------------------


def flag_columns(table: Table, taken: Sequence[str]) -> FlagColumns | None:
    """Columns of 0 and 1, where there are two or more; exclusive where every row has exactly one 1."""
    flags = {
        column: values
        for column in table.columns
        if column not in taken and (values := _flags(table.column(column))) is not None
    }
    used = {column: values for column, values in flags.items() if 1 in values}
    if len(used) < 2:
        return None
    sums = {sum(value or 0 for value in row) for row in zip(*used.values(), strict=True)}
    return FlagColumns(tuple(used), sums == {1}, tuple(column for column in flags if column not in used))


def _flags(cells: Sequence[str]) -> list[int | None] | None:
    values = [flag(cell) for cell in cells]
    readable = all(known for _, known in values) and any(value is not None for value, _ in values)
    return [value for value, _ in values] if readable else None


def label_column(table: Table, taken: Sequence[str]) -> LabelColumn | None:
    """The column of words that is most likely the label: by its name, a bar in its cells, or how few words it has."""
    ranked = []
    for column in table.columns:
        words = _words(table, column) if column not in taken else None
        if words is not None:
            rank = (-name_score(column), words.separator != "|", len(words.labels), table.columns.index(column))
            ranked.append((rank, words))
    return min(ranked, key=lambda item: item[0])[1] if ranked else None


def name_score(column: str) -> int:
    """2 for a name that says label, 1 for one that has such a word in it, else 0."""
    name = plain(column)
    return STRONGEST if name in STRONG else 1 if WEAK.search(name) else 0


def _words(table: Table, column: str) -> LabelColumn | None:
    """None where the column has one word only, or as many as a name or a number would have."""
    cells = [cell for cell in table.column(column) if cell.lower() not in UNKNOWN]
    distinct = set(cells)
    separator = _separator(cells)
    words = {word for cell in distinct for word in _parts(cell, separator)}
    none = none_label(distinct, separator) if separator else None
    labels = tuple(sorted(words - {none}))
    said = name_score(column)
    most = MOST_LABELS if separator == "|" or said == STRONGEST else min(MOST_LABELS, max(2, len(cells) // 2))
    if not 2 <= len(words) <= most or (_are_numbers(words) and not said and words != {"0", "1"}):
        return None
    return LabelColumn(column, labels, separator, none)


def _separator(cells: Sequence[str]) -> str | None:
    """A bar anywhere; a semicolon or comma where the words that they part occur apart, too."""
    for separator in SEPARATORS:
        several = [cell for cell in cells if separator in cell]
        alone = {cell for cell in cells if separator not in cell}
        parts = Counter(word for cell in several for word in _parts(cell, separator))
        if several and (separator == "|" or (alone and sum(word in alone for word in parts) * 2 >= len(parts))):
            return separator
    return None


def _parts(cell: str, separator: str | None) -> list[str]:
    return [word for word in (part.strip() for part in cell.split(separator)) if word] if separator else [cell]


def none_label(cells: set[str], separator: str | None) -> str | None:
    """A word such as No Finding that never stands beside another one."""
    beside = {word for cell in cells if len(_parts(cell, separator)) > 1 for word in _parts(cell, separator)}
    return next((cell for cell in sorted(cells) if plain(cell) in NONE_LABELS and cell not in beside), None)


def _are_numbers(words: set[str]) -> bool:
    return all(re.fullmatch(r"-?\d+([.,]\d+)?", word) for word in words)

"""What a cell of somebody's table means: a label, an age, a sex. Empty is unknown, never no."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medflow.config.sections import TableHead

UNKNOWN = frozenset({"", "nan"})
_YES = frozenset({"true", "yes", "y", "t"})
_NO = frozenset({"false", "no", "n", "f"})
_SEX = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M", "unknown": None, "u": None}
_AGE = re.compile(r"(\d+(?:[.,]\d+)?)\s*([ymwd]?)", re.IGNORECASE)
_PER_YEAR = {"y": 1.0, "m": 12.0, "w": 365.25 / 7.0, "d": 365.25}


@dataclass(frozen=True)
class Said:
    """``labels``: label → 1, 0 or None (unknown)."""

    labels: dict[str, int | None]
    unknown: tuple[str, ...] = ()
    """Words that are no label."""
    ignored: tuple[str, ...] = ()


def of_column(head: TableHead, cell: str, ignore: frozenset[str]) -> Said:
    """One cell that names a label, or several with the head's separator between them."""
    if cell.lower() in UNKNOWN and cell not in head.labels:
        return Said(dict.fromkeys(head.labels))
    words = [word.strip() for word in cell.split(head.separator)] if head.separator else [cell]
    words = [word for word in words if word and word != head.none_label]
    unknown = tuple(word for word in words if word not in head.labels and word not in ignore)
    ignored = tuple(word for word in words if word in ignore and word not in head.labels)
    # What an unknown word would have said is not known of any label.
    blurred = bool(unknown) or (head.kind == "exclusive" and bool(ignored))
    return Said({label: None if blurred else int(label in words) for label in head.labels}, unknown, ignored)


def of_flags(cells: dict[str, str]) -> Said:
    """One cell a label. -1, which some tables write for uncertain, is unknown; ``unknown`` holds what is no flag."""
    flags = {label: flag(cell) for label, cell in cells.items()}
    odd = tuple(f"{label}={cells[label]}" for label, (_, readable) in flags.items() if not readable)
    return Said({label: value for label, (value, _) in flags.items()}, unknown=odd)


def flag(cell: str) -> tuple[int | None, bool]:
    """1, 0 or None, and whether the cell could be read as one of them."""
    word = cell.lower()
    if word in UNKNOWN:
        return None, True
    if word in _YES or word in _NO:
        return int(word in _YES), True
    try:
        number = float(word)
    except ValueError:
        return None, False
    return (int(number) if number in (0.0, 1.0) else None), number in (-1.0, 0.0, 1.0)


def years(cell: str) -> tuple[float | None, bool]:
    """Age in years, and whether the cell could be read: 58, 58.0, 058Y, 18M, 6W, 3D, or nothing."""
    if cell.lower() in UNKNOWN:
        return None, True
    match = _AGE.fullmatch(cell)
    if match is None:
        return None, False
    return float(match[1].replace(",", ".")) / _PER_YEAR[match[2].lower() or "y"], True


def sex(cell: str) -> str | None:
    """F or M; None where unknown; a word that is neither stays, so that `validate` tells it."""
    word = cell.lower()
    return None if word in UNKNOWN else _SEX.get(word, cell)

"""Every check as expectations: the table that `validate` works through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medflow.config.sections import Severity, ValidateConfig
from medflow.records import DatasetCard, HeadSpec

STRUCTURE = "structure"
"""What every manifest must be, whatever the data; always an error."""
OLDEST_YEARS = 120
VIEWS = ("AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO")
"""DICOM's defined terms of View Position (0018,5101)."""

#: What to do about a check that stopped the run, to go before "or set validate.<check>=warning …".
ADVICE: Mapping[str, str] = {
    "unreadable": "replace the files, or fetch the source again",
    "blank": "remove the files",
    "tiny": "replace the files by larger ones",
    "duplicate": "remove the copies",
    "near_duplicate": "remove the copies",
    "label_conflict": "decide which label is true and remove the other copy",
    "label_impossible": "correct the labels",
    "mask_missing": "add the masks",
    "mask_empty": "draw the masks, or remove the files",
    "mask_mismatched": "export the masks again at the images' aspect ratio",
    "metadata": "correct the table",
}


@dataclass(frozen=True)
class Rule:
    """One expectation. A row that fails it is one of ``message``."""

    check: str
    message: str
    expectation: str
    """Class in ``great_expectations.expectations``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""
    """Column whose value is told beside an example."""


def severity_of(check: str, config: ValidateConfig) -> Severity:
    return "error" if check == STRUCTURE else getattr(config, check)


def rules(card: DatasetCard, config: ValidateConfig) -> tuple[Rule, ...]:
    """Rules of a dataset, those that are `off` left out."""
    every = (*_structure(card), *_images(config), *_labels(card), *_masks(card), *_metadata())
    return tuple(rule for rule in every if severity_of(rule.check, config) != "off")


def _structure(card: DatasetCard) -> tuple[Rule, ...]:
    known_parts = ["train", "val", "test"]
    # Where groups are expected a missing one is no slip of ingest, and `split` decides what to make of it.
    grouped = () if card.expects_groups() else (_not_null(STRUCTURE, "rows without a group", "group"),)
    return (
        _not_null(STRUCTURE, "rows without an image_id", "image_id"),
        Rule(STRUCTURE, "image_ids that occur twice", "ExpectColumnValuesToBeUnique", {"column": "image_id"}),
        _not_null(STRUCTURE, "rows without a path", "path"),
        *grouped,
        _matches(STRUCTURE, "sha256 that is not 64 hex digits", "sha256", "^[0-9a-f]{64}$"),
        _between(STRUCTURE, "width that is not positive", "width", min_value=1),
        _between(STRUCTURE, "height that is not positive", "height", min_value=1),
        _in_set(STRUCTURE, "official_split other than train, val and test", "official_split", known_parts),
    )


def _images(config: ValidateConfig) -> tuple[Rule, ...]:
    return (
        _null("unreadable", "files that could not be decoded", "no_pixels"),
        _between(
            "blank",
            f"images whose gray standard deviation is below {config.blank_std:g}",
            "std",
            min_value=config.blank_std,
        ),
        _between(
            "tiny",
            f"images whose shorter side is below {config.tiny_pixels} pixels",
            "shorter_side",
            min_value=config.tiny_pixels,
        ),
        _null("duplicate", "the same bytes as another image, with the same labels", "copy_of"),
        _null(
            "near_duplicate",
            f"perceptual hashes within {config.near_duplicate_bits} bits of another image's, or linked through others",
            "near_copy_of",
        ),
    )


def _labels(card: DatasetCard) -> tuple[Rule, ...]:
    heads = [head for head in card.heads if head.kind != "mask"]
    conflict = _null("label_conflict", "the same bytes under different labels", "conflicts_with")
    return (conflict, *(rule for head in heads for rule in _head(head)))


def _head(head: HeadSpec) -> tuple[Rule, ...]:
    columns = tuple(
        _in_set("label_impossible", "labels that are not 0, 1 or unknown", name, [0, 1]) for name in head.columns()
    )
    if head.kind == "independent":
        return columns
    one = f"images with no label of {head.name}, or with more than one"
    return (*columns, _in_set("label_impossible", one, f"{head.name}.sum", [1]))


def _masks(card: DatasetCard) -> tuple[Rule, ...]:
    if card.mask_head() is None:
        return ()
    return (
        Rule("mask_missing", "images without a mask", "ExpectColumnValuesToNotBeNull", {"column": "mask_path"}),
        Rule(
            "mask_empty",
            "masks in which no pixel is set",
            "ExpectColumnValuesToBeBetween",
            {"column": "mask_fraction", "min_value": 0, "strict_min": True},
        ),
        _null("mask_mismatched", "masks that cannot be read or do not fit their image", "mask_misfit"),
    )


def _metadata() -> tuple[Rule, ...]:
    years = f"ages outside 0 to {OLDEST_YEARS} years"
    return (
        _between("metadata", years, "age", min_value=0, max_value=OLDEST_YEARS),
        _in_set("metadata", "sex other than F and M", "sex", ["F", "M"]),
        _in_set("metadata", f"view other than {', '.join(VIEWS)}", "view", list(VIEWS)),
    )


def _null(check: str, message: str, column: str) -> Rule:
    return Rule(check, message, "ExpectColumnValuesToBeNull", {"column": column}, shown=column)


def _not_null(check: str, message: str, column: str) -> Rule:
    return Rule(check, message, "ExpectColumnValuesToNotBeNull", {"column": column})


def _matches(check: str, message: str, column: str, regex: str) -> Rule:
    return Rule(check, message, "ExpectColumnValuesToMatchRegex", {"column": column, "regex": regex}, shown=column)


def _in_set(check: str, message: str, column: str, values: list[Any]) -> Rule:
    return Rule(check, message, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": values}, shown=column)


def _between(check: str, message: str, column: str, **limits: float) -> Rule:
    return Rule(check, message, "ExpectColumnValuesToBeBetween", {"column": column, **limits}, shown=column)

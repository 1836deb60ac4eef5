"""The page of a split: its three parts beside each other, which no single artifact holds."""

from __future__ import annotations

from medflow.records import Split
from medflow.report import html, parts


def split_page(split: Split) -> str:
    """Classes, groups and images of the three parts, and what the split had to move."""
    by_role = {"train": split.train, "val": split.val, "test": split.test}
    return html.page(
        "Split",
        f"{sum(map(len, by_role.values())):,} images; no group is in two parts",
        html.section("Parts", parts.parts_of_split(by_role)),
        html.section("Findings", parts.found(split.train.findings)),
    )

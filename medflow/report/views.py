"""Pages of what no single artifact holds: the parts of a split beside each other, and images with what was said."""

from __future__ import annotations

from medflow.evaluate import Samples
from medflow.records import Findings, Split
from medflow.report import html, images, parts


def split_page(split: Split) -> str:
    """Classes, groups and images of the three parts."""
    by_role = {"train": split.train, "val": split.val, "test": split.test}
    return html.page(
        "Split",
        f"{sum(map(len, by_role.values())):,} images; no group is in two parts",
        html.section("Parts", parts.parts_of_split(by_role)),
        html.section("Findings", parts.findings(Findings(findings=split.train.findings))),
    )


def samples_page(samples: Samples) -> str:
    """A few images with the outlines of true and predicted masks."""
    drawn = images.overlays(samples.image_id, samples.images, samples.predicted, samples.masks, samples.has_mask)
    return html.page("Samples", f"{len(samples.image_id)} images", html.section("Images", html.figure(drawn)))

"""The page of some images with what was true and what was said."""

from __future__ import annotations

from medflow.evaluate import Samples
from medflow.report import html, images
from medflow.report.figure import Figure


def samples_page(samples: Samples) -> str:
    """A few images with the outlines of true and predicted masks."""
    drawn = images.overlays(samples.image_id, samples.images, samples.predicted, samples.masks, samples.has_mask)
    return html.page("Samples", f"{len(samples.image_id)} images", html.section("Images", html.figure(drawn)))


def augmentation_page(drawn: Figure) -> str:
    """A training batch before and after augmentation."""
    return html.page("Augmentation", "the first rows of the first epoch", html.section("Images", html.figure(drawn)))

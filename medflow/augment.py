"""Augmentation of training rows on the stored pixels: uint8, gray or RGB, image and mask in step.

albumentations works on the pixels before they are normalized or repeated to three channels, which is
2.7 times cheaper than on RGB floats. What a row becomes depends on its seeds alone, so it is the same
whichever thread prepares it, and in a resumed training.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np

from medflow.config.sections import Augment

if TYPE_CHECKING:
    import albumentations


class Augmenter:
    """One pipeline of transforms. Not shared between threads: albumentations keeps its generators inside."""

    def __init__(self, config: Augment) -> None:
        self._compose = _compose(config)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, seeds: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Image uint8 (height, width, channels), mask uint8 (height, width) or None; the same shapes come back."""
        generator = np.random.default_rng(seeds)
        # set_random_seed would build generators anew for every transform; they may share one of each kind.
        self._compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        given = {"image": image} if mask is None else {"image": image, "mask": mask}
        made = self._compose(**given)
        return made["image"].reshape(image.shape), made.get("mask")


def changes_anything(config: Augment) -> bool:
    """Whether some transform has a probability above 0; asked before albumentations is imported."""
    chances = (
        config.flip,
        config.vertical_flip,
        config.rotate,
        config.elastic,
        config.brightness_contrast,
        config.clahe,
    )
    return any((*chances, config.blur, config.noise, config.coarse_dropout, config.grid_dropout))


def _compose(config: Augment) -> albumentations.Compose:
    import albumentations

    return albumentations.Compose(_transforms(config))


def _transforms(config: Augment) -> list[albumentations.BasicTransform]:
    # It would otherwise ask PyPI for a newer version at import.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    turn, limit, noise = config.rotate_degrees, config.brightness_limit, config.noise_std / 255.0
    # Geometry first, since it alone moves the mask; noise after blur, as a detector adds it last.
    candidates = [
        A.HorizontalFlip(p=config.flip),
        A.VerticalFlip(p=config.vertical_flip),
        A.Rotate(limit=(-turn, turn), border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=0, p=config.rotate),
        A.ElasticTransform(
            alpha=config.elastic_alpha, sigma=config.elastic_sigma, border_mode=cv2.BORDER_CONSTANT, p=config.elastic
        ),
        A.RandomBrightnessContrast(brightness_limit=limit, contrast_limit=limit, p=config.brightness_contrast),
        A.CLAHE(clip_limit=(1.0, 4.0), p=config.clahe),
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2), p=config.blur),
        A.GaussNoise(std_range=(noise, noise), p=config.noise),
        A.CoarseDropout(num_holes_range=(1, 4), fill=0, fill_mask=None, p=config.coarse_dropout),
        A.GridDropout(ratio=config.grid_ratio, fill=0, fill_mask=None, p=config.grid_dropout),
    ]
    return [transform for transform in candidates if transform.p > 0]

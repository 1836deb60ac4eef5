"""Augmentation of the training rows: `train.augment`."""

from __future__ import annotations

from pydantic import Field

from medflow.config.sections.base import Fraction, Section


class Augment(Section):
    """Augmentation of training rows, image and mask in step; probabilities are per image."""

    rotate_degrees: float = Field(10.0, ge=0, le=180)
    rotate: Fraction = 0.3
    flip: Fraction = 0.0
    """Horizontal flip. Off unless a dataset's YAML says why laterality does not matter."""
    vertical_flip: Fraction = 0.0
    brightness_contrast: Fraction = 0.0
    brightness_limit: Fraction = 0.2
    clahe: Fraction = 0.0
    noise: Fraction = 0.0
    noise_std: float = Field(5.0, ge=0, le=128)
    """In gray values, 0 to 255."""
    blur: Fraction = 0.0
    coarse_dropout: Fraction = 0.0

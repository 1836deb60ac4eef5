"""Augmentation of the training rows: `train.augment`."""

from __future__ import annotations

from pydantic import Field

from medflow.config.sections.base import Fraction, Positive, Section


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
    """One to four black rectangles, each a tenth to a fifth of the side; the mask stays whole."""
    grid_dropout: Fraction = 0.0
    """A grid of black squares at a random offset; the mask stays whole."""
    grid_ratio: float = Field(0.3, gt=0, lt=1)
    """Side of each square as a share of its cell, so that 0.3 hides 9 % of the image."""
    elastic: Fraction = 0.0
    """Elastic deformation of image and mask (Simard et al. 2003, doi 10.1109/ICDAR.2003.1227801)."""
    elastic_alpha: float = Field(30.0, ge=0)
    """Normal noise, smoothed over `elastic_sigma`, times this is the displacement in stored pixels."""
    elastic_sigma: Positive = 6.0
    """In stored pixels."""

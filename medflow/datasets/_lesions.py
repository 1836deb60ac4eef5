"""Skin lesions drawn from formulas, in color: one spot on skin, its outline as a mask, hairs across both.

Shapes: images uint8 (height, width, 3) in RGB, masks uint8 (height, width), 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Lesion:
    """What two photographs of one lesion share. Lengths as shares of half the picture's side."""

    radius: float
    ragged: float
    """0 is an ellipse, 1 a coast line."""
    dark: float
    """How much darker than skin, 0 to 1."""
    mottled: float
    """Strength of the pattern inside, 0 to 1."""
    stretch: float
    harmonics: tuple[float, ...]
    """Phases of the outline's waves."""

    @classmethod
    def draw(cls, rng: Generator, *, ragged: float, dark: float, mottled: float) -> Lesion:
        return cls(
            radius=rng.uniform(0.25, 0.5),
            ragged=ragged,
            dark=dark,
            mottled=mottled,
            stretch=rng.uniform(0.8, 1.25),
            harmonics=tuple(rng.uniform(0.0, 2.0 * np.pi, size=5)),
        )


@dataclass(frozen=True)
class Photograph:
    image: np.ndarray
    outline: np.ndarray


_SKIN = np.array([222.0, 178.0, 155.0], dtype=np.float32)
_SPOT = np.array([92.0, 56.0, 44.0], dtype=np.float32)


def photograph(lesion: Lesion, shape: tuple[int, int], rng: Generator) -> Photograph:
    """One picture of a lesion; ``rng`` draws what differs from picture to picture: place, light, hair, noise."""
    height, width = shape
    rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    x, y = columns - rng.normal(0.0, 0.08), rows - rng.normal(0.0, 0.08)
    angle, reach = np.arctan2(y, x) + rng.uniform(0.0, 2.0 * np.pi), np.hypot(x * lesion.stretch, y / lesion.stretch)
    waves = sum(np.sin(turn * angle + phase) / turn for turn, phase in enumerate(lesion.harmonics, start=2))
    depth = lesion.radius * (1.0 + 0.35 * lesion.ragged * waves) - reach
    share = lesion.dark * (0.5 + 0.5 * np.tanh(depth / 0.04)) * (1.0 - lesion.mottled * _cells(shape, rng, 14))
    color = _SKIN + share[..., None] * (_SPOT - _SKIN)
    light = rng.uniform(0.85, 1.1) * (1.0 - 0.15 * rng.random() * (columns**2 + rows**2))
    picture = color * light[..., None] + rng.normal(0.0, 4.0, size=(height, width, 3))
    image = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    _hairs(image, rng)
    return Photograph(image=image, outline=(depth > 0).astype(np.uint8))


def _cells(shape: tuple[int, int], rng: Generator, cells: int) -> np.ndarray:
    coarse = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _hairs(image: np.ndarray, rng: Generator) -> None:
    """A few dark lines across the picture, in place."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 5))):
        ends = rng.uniform(0.0, 1.0, size=(2, 2)) * (width, height)
        start, end = ((int(place[0]), int(place[1])) for place in ends)
        cv2.line(image, start, end, (60, 45, 40), thickness=1, lineType=cv2.LINE_AA)

"""Chest radiographs drawn from formulas: anatomy, pathology, pose and scanner, each from its own random stream.

Coordinates are the body's own: x from -1 (left edge of the picture) to 1, y from -1 (top) to 1. Brightness
is attenuation, 0 (air) to about 1. Nothing about site, scanner or pose depends on the label, so a model that
reads them learns nothing; the strength of every finding varies, so that classes overlap as they do in life.

Shapes: every field is float32 (height, width); images leave as uint8 (height, width), masks as 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

Field = np.ndarray


def save(path: Path, image: np.ndarray) -> None:
    """Write a gray, RGB or RGBA uint8 image in the format that the file's name says; same pixels, same bytes."""
    ordered = image if image.ndim == 2 else image[..., (2, 1, 0, 3)[: image.shape[2]]]
    _, data = cv2.imencode(path.suffix, ordered)
    path.write_bytes(data.tobytes())  # not cv2.imwrite: it reports a full disk as False


@dataclass(frozen=True)
class Anatomy:
    """What two images of one patient share. Lengths in body coordinates."""

    apex: float
    base: float
    """y of the top of the lungs and of the diaphragm's dome."""
    gap: float
    """Half the distance between the lungs at the mediastinum."""
    breadth: float
    """Greatest width of one lung."""
    heart: float
    """Half the width of the heart; about 0.3, and 0.4 or more is an enlarged one."""
    torso: float
    rib_pitch: float
    rib_slope: float
    vessel_phase: float
    tissue: float
    """Attenuation of the chest wall, larger for a heavier patient."""

    @classmethod
    def draw(cls, rng: Generator) -> Anatomy:
        return cls(
            apex=rng.uniform(-0.82, -0.68),
            base=rng.uniform(0.30, 0.50),
            gap=rng.uniform(0.12, 0.17),
            breadth=rng.uniform(0.50, 0.60),
            heart=rng.uniform(0.26, 0.33),
            torso=rng.uniform(0.84, 0.97),
            rib_pitch=rng.uniform(0.14, 0.18),
            rib_slope=rng.uniform(0.25, 0.45),
            vessel_phase=rng.uniform(0.0, 2.0 * np.pi),
            tissue=rng.uniform(0.52, 0.64),
        )


@dataclass(frozen=True)
class Opacity:
    """One white patch in a lung."""

    side: int
    """-1 is the patient's right lung (left in the picture), 1 the left."""
    across: float
    """0 at the mediastinum, 1 at the ribs."""
    down: float
    """0 at the apex, 1 at the diaphragm."""
    radius: float
    strength: float
    """Share of the lung's darkness that it fills, 0 to 1."""
    ragged: float
    """0 is a smooth disc with an edge (a nodule), 1 a patch without one (consolidation)."""


@dataclass(frozen=True)
class Pathology:
    opacities: tuple[Opacity, ...] = ()
    effusion: tuple[float, float] = (0.0, 0.0)
    """Fluid level in the right and left lung, 0 (none) to 1 (the whole lung)."""
    haze: float = 0.0
    """Strength of a fine diffuse pattern over both lungs, 0 to 1."""
    heart: float = 1.0
    """Factor on the heart's width."""


@dataclass(frozen=True)
class Scanner:
    """One site's machine: how attenuation becomes gray values. Independent of every label."""

    gain: float
    gamma: float
    noise: float
    """Standard deviation, gray values."""
    grid: float
    """Amplitude of the anti-scatter grid's stripes, gray values."""
    pitch: float
    """Stripes over the width of the picture."""
    marker: tuple[float, float]
    """Where the lead side marker lies, body coordinates."""

    @classmethod
    def draw(cls, rng: Generator) -> Scanner:
        return cls(
            gain=rng.uniform(0.9, 1.1),
            gamma=rng.uniform(0.85, 1.2),
            noise=rng.uniform(2.0, 5.0),
            grid=rng.uniform(0.0, 2.5),
            pitch=rng.uniform(16.0, 40.0),
            marker=(rng.choice([-0.88, 0.88]), rng.uniform(-0.9, -0.7)),
        )


@dataclass(frozen=True)
class Radiograph:
    image: np.ndarray
    """uint8 (height, width)."""
    lungs: np.ndarray
    """uint8 (height, width), 1 where a lung is seen; the heart's shadow is not lung."""


def radiograph(
    anatomy: Anatomy,
    pathology: Pathology,
    scanner: Scanner,
    shape: tuple[int, int],
    rng: Generator,
    *,
    heart: float = 1.0,
) -> Radiograph:
    """One exposure of one patient. ``rng`` draws what differs from image to image: pose, exposure, noise.

    ``heart`` is the magnification of the heart's shadow by the projection (about 1.1 in AP).
    """
    x, y = _posed_grid(shape, rng)
    heart_shadow = _heart(anatomy, x, y, anatomy.heart * pathology.heart * heart)
    depth = _lung_depth(anatomy, x, y)
    lungs = _edge(depth, 0.018) * (1.0 - heart_shadow)
    air = lungs * _aeration(anatomy, pathology, x, y, rng)
    body = _body(anatomy, x, y, heart_shadow)
    seen = body - (0.62 * anatomy.tissue) * air + 0.05 * air * _vessels(anatomy, x, y)
    visible = (depth > 0) & (heart_shadow < 0.5)
    return Radiograph(image=_expose(seen, x, y, scanner, rng), lungs=visible.astype(np.uint8))


def _posed_grid(shape: tuple[int, int], rng: Generator) -> tuple[Field, Field]:
    """Body coordinates of every pixel, after a small random turn, shift and change of scale."""
    height, width = shape
    rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    angle, scale = np.radians(rng.normal(0.0, 3.0)), rng.uniform(0.90, 1.08)
    shift_x, shift_y = rng.normal(0.0, 0.05, size=2)
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    x, y = columns - np.float32(shift_x), rows - np.float32(shift_y)
    return cosine * x + sine * y, cosine * y - sine * x


def _edge(distance: Field, softness: float) -> Field:
    """0 outside, 1 inside, with a soft edge where ``distance`` crosses zero."""
    return 0.5 + 0.5 * np.tanh(distance / np.float32(2.0 * softness))


def _bump(distance: Field, width: float) -> Field:
    return np.exp(-np.square(distance / np.float32(width)))


def _lung_depth(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Distance to the nearest lung border, positive inside; both lungs at once, by symmetry."""
    side = np.abs(x)
    down = np.clip((y - anatomy.apex) / (anatomy.base - anatomy.apex), 0.0, 1.3)
    outer = anatomy.gap + anatomy.breadth * np.sqrt(np.clip(1.0 - np.abs(1.0 - down) ** 2.2, 0.0, 1.0))
    inner = anatomy.gap - 0.05 * down
    lateral = (side - anatomy.gap) / anatomy.breadth
    dome = anatomy.base + 0.22 * (lateral - 0.25) + 0.25 * np.square(lateral - 0.3)
    return np.minimum(np.minimum(side - inner, outer - side), np.minimum(dome - y, y - anatomy.apex))


def _heart(anatomy: Anatomy, x: Field, y: Field, half_width: float) -> Field:
    """Soft shadow of the heart, 0 to 1; two thirds of it lie to the right of the picture."""
    middle = anatomy.base - 0.22
    radius = np.sqrt(np.square((x - 0.35 * half_width) / half_width) + np.square((y - middle + 0.3 * x) / 0.36))
    return _edge(1.0 - radius, 0.05)


def _body(anatomy: Anatomy, x: Field, y: Field, heart: Field) -> Field:
    """Attenuation without lungs: chest wall, spine, heart, ribs, collar bones, abdomen."""
    side = np.abs(x)
    flank = anatomy.torso + 0.25 * np.clip(-y - 0.6, 0.0, 1.0) - side
    wall = _edge(flank, 0.025) * (anatomy.tissue + 0.08 * _edge(y - anatomy.base, 0.08))
    spine = (0.14 + 0.03 * np.sin(y * 40.0)) * _bump(x, 0.10)
    phase = (y + anatomy.rib_slope * np.square(side - 0.35) * 2.0 - 0.1 * side) / anatomy.rib_pitch
    cage = _edge(flank - 0.08, 0.03) * _edge(side - 0.1, 0.04) * _edge(anatomy.base + 0.25 - y, 0.08)
    ribs = 0.055 * cage * np.clip(np.cos(phase * 2.0 * np.pi), 0.0, 1.0)
    collar = 0.10 * _bump(y - anatomy.apex - 0.10 + 0.25 * side, 0.03) * _edge(0.8 - side, 0.05) * _edge(flank, 0.03)
    return wall + spine + ribs + collar + 0.16 * heart


def _vessels(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Fine branches that fan out from the hila and fade; about 0 to 2."""
    side, level = np.abs(x) - anatomy.gap, y + 0.15
    angle, reach = np.arctan2(level, side + 0.02), np.hypot(level, side)
    turn = anatomy.vessel_phase * np.sign(x)
    fan = np.clip(np.sin(9.0 * angle + turn) + np.sin(14.0 * angle - 2.0 * turn + 6.0 * reach), 0.0, 2.0)
    return fan * np.exp(-2.5 * reach) + 1.5 * _bump(reach, 0.12)


def _aeration(anatomy: Anatomy, pathology: Pathology, x: Field, y: Field, rng: Generator) -> Field:
    """How much of the lung's darkness is left, 0 to 1, after every finding took its share."""
    cloud = _clouds(x.shape, rng, cells=10)
    air = np.ones_like(x) - np.float32(pathology.haze) * (0.55 + 0.45 * _clouds(x.shape, rng, cells=24))
    for opacity in pathology.opacities:
        air *= 1.0 - np.float32(opacity.strength) * _patch(anatomy, opacity, x, y, cloud)
    for side, level in zip((-1, 1), pathology.effusion, strict=True):
        if level > 0.0:
            surface = anatomy.base + 0.1 - level * (anatomy.base - anatomy.apex) - 0.25 * np.square(np.abs(x) - 0.3)
            air *= 1.0 - 0.9 * _edge(y - surface, 0.03) * (np.sign(x) == side)
    return np.clip(air, 0.0, 1.0)


def _patch(anatomy: Anatomy, opacity: Opacity, x: Field, y: Field, cloud: Field) -> Field:
    """One opacity's own share, 0 to 1."""
    height = anatomy.base - anatomy.apex
    centre_x = opacity.side * (anatomy.gap + anatomy.breadth * (0.15 + 0.65 * opacity.across))
    centre_y = anatomy.apex + height * (0.25 + 0.65 * opacity.down)
    distance = np.hypot(x - centre_x, y - centre_y) / opacity.radius
    if opacity.ragged == 0.0:
        return _edge(1.0 - distance, 0.12)
    return _bump(distance, 1.0) * np.clip(1.0 + opacity.ragged * 0.8 * cloud, 0.0, 1.0)


def _clouds(shape: tuple[int, int], rng: Generator, cells: int) -> Field:
    """Smooth noise, -1 to 1, with about ``cells`` blobs along each side."""
    coarse = rng.uniform(-1.0, 1.0, size=(cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _expose(seen: Field, x: Field, y: Field, scanner: Scanner, rng: Generator) -> np.ndarray:
    """Attenuation to gray values: this exposure's gain and heel effect, the site's gamma, grid, marker, and noise.

    The uneven light also keeps perceptual hashes of different patients apart, as in life.
    """
    gain = scanner.gain * rng.uniform(0.95, 1.05)
    gray = 235.0 * np.clip(gain * seen, 0.0, 1.1) ** np.float32(scanner.gamma)
    gray += np.float32(scanner.grid) * np.sin(np.float32(np.pi * scanner.pitch) * x)
    heel_x, heel_y = rng.normal(0.0, 10.0, size=2).astype(np.float32)
    gray += heel_x * x + heel_y * y + 12.0 * _clouds(seen.shape, rng, cells=4)
    right, top = scanner.marker
    letter = (np.abs(x - right) < 0.03) & (np.abs(y - top) < 0.05)
    gray = np.where(letter, 245.0, gray)
    gray += rng.standard_normal(seen.shape, dtype=np.float32) * np.float32(scanner.noise)
    return np.clip(np.rint(gray), 0, 255).astype(np.uint8)

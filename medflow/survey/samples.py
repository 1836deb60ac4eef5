"""Whether images have colours: a few are opened and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from medflow.errors import ImageError
from medflow.preprocess import decode
from medflow.survey.guess import Guess

LOOKED_AT = 24
COLOURED = 6.0
"""Mean distance of the largest and the smallest of red, green and blue from which on an image is coloured, 0 to 255."""


def with_channels(guess: Guess, root: Path) -> Guess:
    """Three channels where most of the images that could be read are coloured, else one."""
    sample = _spread(guess.pictures)
    distances, broken = [], []
    for path in sample:
        try:
            pixels = decode((root / path).read_bytes(), 3).astype(np.int16)
            distances.append(float((pixels.max(axis=2) - pixels.min(axis=2)).mean()))
        except (ImageError, OSError):
            broken.append(path)
    coloured = sum(distance > COLOURED for distance in distances)
    channels = 3 if 2 * coloured > len(distances) else 1
    notes = list(guess.notes)
    if 0 < coloured < len(distances):
        notes.append(f"coloured are {coloured} of {len(distances)} images looked at: channels is {channels}")
    if broken:
        notes.append(f"{len(broken)} of {len(sample)} images looked at cannot be read, such as {broken[0]}")
    declared = guess.declared.model_copy(update={"channels": channels})
    return replace(guess, declared=declared, notes=tuple(notes))


def _spread(paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Paths from all over the folder, the same ones every time."""
    places = np.unique(np.linspace(0, len(paths) - 1, LOOKED_AT).astype(int))
    return [paths[place] for place in places.tolist()]

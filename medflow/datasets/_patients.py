"""Who is in a generated dataset: patients with a few images each, before a single pixel is drawn.

Random streams are named by what they draw, ``default_rng([seed, stream, number])``, so that asking for more
images changes none of the earlier patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from medflow.datasets._synthesis import Anatomy, Opacity, Pathology, Radiograph, Scanner, radiograph

MOST_IMAGES = 4
SITES = ("north", "south", "east", "west")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stream(IntEnum):
    PATIENT = 1
    IMAGE = 2
    SITE = 3
    LAYOUT = 4
    FAULTS = 5
    TEXT = 6


def stream(seed: int, kind: Stream, number: int = 0) -> Generator:
    return np.random.default_rng([seed, int(kind), number])


@dataclass(frozen=True)
class Patient:
    number: int
    """From 1."""
    label: str
    age: int
    """Years."""
    sex: str
    site: str
    anatomy: Anatomy
    pathology: Pathology


@dataclass(frozen=True)
class Shot:
    """One image to be drawn."""

    index: int
    patient: Patient
    turn: int
    """Which of the patient's images, from 1."""
    view: str


Ill = Callable[[str, Generator], Pathology]


def shots(seed: int, images: int, shares: Mapping[str, float], ill: Ill) -> tuple[Shot, ...]:
    """``images`` images of patients with one to four each, labels in the proportion of ``shares``.

    ``ill(label, rng)`` draws what a patient of that label suffers from. Labels go to whichever is furthest
    behind its share, so that even a tiny dataset has every label.
    """
    drawn: list[Shot] = []
    counts = dict.fromkeys(shares, 0)
    number = 0
    while len(drawn) < images:
        number += 1
        rng = stream(seed, Stream.PATIENT, number)
        label = min(shares, key=lambda name: (counts[name] + 1) / shares[name])
        patient = _patient(number, label, ill, rng)
        take = min(int(rng.choice(MOST_IMAGES, p=(0.4, 0.3, 0.2, 0.1))) + 1, images - len(drawn))
        for turn in range(1, take + 1):
            view = "AP" if rng.random() < 0.3 else "PA"
            drawn.append(Shot(index=len(drawn), patient=patient, turn=turn, view=view))
        counts[label] += take
    return tuple(drawn)


def _patient(number: int, label: str, ill: Ill, rng: Generator) -> Patient:
    return Patient(
        number=number,
        label=label,
        age=int(np.clip(rng.normal(55.0, 18.0), 18, 95)),
        sex="F" if rng.random() < 0.5 else "M",
        site=str(rng.choice(SITES)),
        anatomy=Anatomy.draw(rng),
        pathology=ill(label, rng),
    )


def exposed(seed: int, shot: Shot, shape: tuple[int, int]) -> Radiograph:
    """Draw one image at (height, width); depends on the seed and the shot alone."""
    scanner = Scanner.draw(stream(seed, Stream.SITE, SITES.index(shot.patient.site)))
    rng = stream(seed, Stream.IMAGE, shot.index)
    magnified = 1.08 if shot.view == "AP" else 1.0
    return radiograph(shot.patient.anatomy, shot.patient.pathology, scanner, shape, rng, heart=magnified)


def on_all_cores(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
    """``work`` over ``items``, in order. Threads: numpy and OpenCV let go of the interpreter while they draw."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(work, items, chunksize=1)


# -- what patients suffer from -------------------------------------------------------------------


def strength(rng: Generator, low: float, high: float) -> float:
    """How plain a finding is: mostly clear, now and then too faint to see."""
    return float(low + (high - low) * rng.beta(2.0, 1.2))


def consolidation(rng: Generator, low: float = 0.55, high: float = 1.0) -> Opacity:
    """A ragged patch, most often low in the lung."""
    return Opacity(
        side=int(rng.choice([-1, 1])),
        across=rng.uniform(0.1, 0.9),
        down=float(rng.beta(3.0, 1.5)),
        radius=rng.uniform(0.20, 0.36),
        strength=strength(rng, low, high),
        ragged=1.0,
    )


def nodule(rng: Generator, low: float = 0.6, high: float = 1.0) -> Opacity:
    """A round shadow with an edge, anywhere in a lung."""
    return Opacity(
        side=int(rng.choice([-1, 1])),
        across=rng.uniform(0.05, 0.95),
        down=rng.uniform(0.05, 0.85),
        radius=rng.uniform(0.10, 0.17),
        strength=strength(rng, low, high),
        ragged=0.0,
    )


def effusion(rng: Generator) -> tuple[float, float]:
    """Fluid on one side."""
    level = rng.uniform(0.15, 0.45)
    return (level, 0.0) if rng.random() < 0.5 else (0.0, level)


def large_heart(rng: Generator) -> float:
    return float(rng.uniform(1.25, 1.55))

"""timm and segmentation-models-pytorch, imported without Weights & Biases.

timm's own training script logs there, and so importing timm imports wandb wherever that is installed: a third of the
time, and two temporary folders (``tmp*wandb-media``, ``tmp*wandb-artifacts``) that a killed process leaves behind. Who
wants wandb (``medflow.trackers.wandb``) imports it as before. What needs timm before a network is built gets it here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNWANTED = "wandb"


def timm() -> Any:
    """The module."""
    with _without_wandb():
        import timm
    return timm


def smp() -> Any:
    """The module ``segmentation_models_pytorch``."""
    with _without_wandb():
        import segmentation_models_pytorch
    return segmentation_models_pytorch


@contextmanager
def _without_wandb() -> Iterator[None]:
    """Within this block importing wandb raises ImportError, which timm takes for an answer."""
    if UNWANTED in sys.modules:
        yield
        return
    sys.modules[UNWANTED] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[UNWANTED]

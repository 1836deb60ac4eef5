"""Mean and standard deviation of the training pixels."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.records import Manifest, Normalization, Pixels


@step
def normalize(train: Manifest, pixels: Pixels) -> Annotated[Normalization, "normalization"]:
    from medflow import normalize as normalizing

    return normalizing.normalize(train, pixels)

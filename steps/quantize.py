"""A graph with 8-bit weights and activations, calibrated on training rows."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import QuantizeConfig
from medflow.records import Bundle, Manifest, Pixels


@step
def quantize(
    bundle: Bundle, train: Manifest, val: Manifest, pixels: Pixels, config: QuantizeConfig
) -> Annotated[Bundle, "quantized"]:
    from medflow import quantize as quantizing
    from medflow.platform import context

    return quantizing.quantize(bundle, train, val, pixels, config, work=context.work_folder())

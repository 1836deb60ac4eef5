"""A torch bundle as an ONNX graph that takes the stored uint8 pixels."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.config.sections import ExportConfig
from medflow.records import Bundle, Manifest, Pixels


@step
def export_onnx(bundle: Bundle, val: Manifest, pixels: Pixels, config: ExportConfig) -> Annotated[Bundle, "onnx"]:
    from medflow import export
    from medflow.platform import context

    return export.export_onnx(bundle, val, pixels, config, work=context.work_folder())

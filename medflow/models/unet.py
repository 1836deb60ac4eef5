"""MONAI's UNet with a mask head and a label head on its features."""

from __future__ import annotations

from torch import nn

from medflow.config.sections import MonaiUNet
from medflow.errors import ModelError
from medflow.models.network import Parts
from medflow.records import HeadSpec, Preprocess


def monai_unet(model: MonaiUNet, heads: tuple[HeadSpec, ...], preprocess: Preprocess) -> Parts:
    """Raises ModelError for a size that the levels cannot halve."""
    # 14 s of CPU, since MONAI imports all of itself, 9 s where torchvision is loaded already;
    # its modules import one another in circles, so there is no way to this one class alone.
    from monai.networks.nets import UNet

    strides = (2,) * (len(model.channels) - 1)
    multiple, size = 2 ** len(strides), preprocess.pixels.height
    if size % multiple:
        raise ModelError(
            f"a UNet of {len(model.channels)} levels halves its input {len(strides)} times, and {size} is no multiple "
            f"of {multiple}",
            hint=f"set the model's `size` to {max(multiple, size // multiple * multiple)}",
        )
    backbone = UNet(
        spatial_dims=2,
        in_channels=preprocess.pixels.channels,
        out_channels=model.features,
        channels=model.channels,
        strides=strides,
        num_res_units=model.residual_units,
        norm="BATCH",
        dropout=model.dropout,
    )
    make = {"mask": _mask_head, "exclusive": _label_head, "independent": _label_head}
    return Parts(backbone, {head.name: make[head.kind](model, len(head.labels)) for head in heads})


def _mask_head(model: MonaiUNet, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(model.features, model.mask_hidden, kernel_size=3, padding=1),
        nn.BatchNorm2d(model.mask_hidden),
        nn.ReLU(),
        nn.Conv2d(model.mask_hidden, outputs, kernel_size=1),
    )


def _label_head(model: MonaiUNet, outputs: int) -> nn.Sequential:
    """Global average pool, then Dropout, Linear, ReLU, BatchNorm for each hidden width, then Dropout, Linear."""
    if len(model.label_dropout) != len(model.label_hidden) + 1:
        raise ModelError(
            f"label_dropout has {len(model.label_dropout)} values for {len(model.label_hidden)} hidden layers",
            hint=f"give {len(model.label_hidden) + 1}: one before each hidden layer and one before the labels",
        )
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width = model.features
    for hidden, dropout in zip(model.label_hidden, model.label_dropout[:-1], strict=True):
        layers += [nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU(), nn.BatchNorm1d(hidden)]
        width = hidden
    return nn.Sequential(*layers, nn.Dropout(model.label_dropout[-1]), nn.Linear(width, outputs))

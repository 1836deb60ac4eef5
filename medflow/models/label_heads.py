"""Label heads: the last layers of a network, from pooled features to the logits of one head."""

from __future__ import annotations

from torch import nn

from medflow.config.sections import LabelLayers


def label_head(layers: LabelLayers, width: int, outputs: int) -> nn.Sequential:
    """From (n, ``width``) to (n, ``outputs``): [LayerNorm or BatchNorm,] (Dropout, Linear, ReLU)*, Dropout, Linear.

    With `hidden: [512], dropout: 0.5` the second published system's head; with `head_norm: layer, hidden: [128],
    head_dropout: [0.3, 0.25]` the third's.
    """
    made: list[nn.Module] = []
    if layers.head_norm != "none":
        made.append(nn.LayerNorm(width) if layers.head_norm == "layer" else nn.BatchNorm1d(width))
    *before_hidden, last = layers.dropouts
    for hidden, dropout in zip(layers.hidden, before_hidden, strict=True):
        made += [nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*made, nn.Dropout(last), nn.Linear(width, outputs))

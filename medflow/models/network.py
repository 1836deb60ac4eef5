"""What every family makes: a backbone, a neck and one module a head, from stored pixels to logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medflow.records import Preprocess, Structure


@dataclass(frozen=True)
class Parts:
    """What a family builds of a config."""

    backbone: nn.Module
    heads: Mapping[str, nn.Module]
    """By head name; each takes the neck's output."""
    neck: nn.Module | None = None
    paced: tuple[nn.Module, ...] = ()
    """Modules of the neck that come pretrained: frozen with the backbone, and trained at its pace."""


class Network(nn.Module):
    """A backbone, what a family builds between it and the heads, and one module a head: pixels in, logits out.

    ``forward`` takes uint8 (n, height, width, channels) and returns, by head name, float32 (n, labels),
    or (n, 1, height, width) for a mask. It is ``logits`` of ``features``. A family that reads reports takes their
    token ids and attention mask too, int64 (n, tokens); without them no image has a report.

    The backbone is what `pretrained` fills and `freeze` holds still; neck and heads are new in every training.
    """

    mean: Tensor
    std: Tensor
    structure: Structure
    """From what ``models.build`` makes the same network again, with other weights."""

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        preprocess: Preprocess,
        neck: nn.Module | None = None,
        paced: tuple[nn.Module, ...] = (),
    ) -> None:
        """``neck`` takes the backbone's output and gives what the heads take; None hands it on as it is.

        ``paced`` are those of its modules that count as backbone.
        """
        super().__init__()
        self.backbone = backbone
        self.neck = neck or nn.Identity()
        self.paced = paced  # in a tuple, so that they are registered once, in the neck
        self.heads = nn.ModuleDict(heads)
        # Not persistent: they come from the card, and one truth is enough.
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, *tokens: Tensor) -> dict[str, Tensor]:
        return self.logits(self.features(images), *tokens)

    def features(self, images: Tensor) -> Any:
        """The backbone's output for stored pixels: a tensor, or a list of them, one a level."""
        # A view, not a copy: contiguous NHWC is channels-last NCHW.
        pixels = images.permute(0, 3, 1, 2)
        return self.backbone((pixels.float() / 255.0 - self.mean) / self.std)

    def logits(self, features: Any, *tokens: Tensor) -> dict[str, Tensor]:
        """What neck and heads make of the backbone's output, and of the reports' tokens."""
        shared = self.neck(features, *tokens)
        return {name: head(shared).float() for name, head in self.heads.items()}

    def parameters_of(self, part: Literal["backbone", "head"]) -> list[nn.Parameter]:
        """``backbone``: what may be pretrained; ``head``: the new layers, neck included."""
        old = [parameter for module in (self.backbone, *self.paced) for parameter in module.parameters()]
        if part == "backbone":
            return old
        known = {id(parameter) for parameter in old}
        return [parameter for parameter in self.parameters() if id(parameter) not in known]

"""The blocks of a backbone, from its input to its output: what ``unfreeze_blocks`` counts, from the end.

- A whole timm network says itself what its blocks are (``group_matcher``): a residual block of a ResNet or ConvNeXt,
  a dense layer of a DenseNet, a transformer layer of a ViT or Swin, an inverted residual of an EfficientNet.
- Any other backbone (an SMP encoder, MONAI's UNet, one that reads reports): the children of the outermost module that
  has more than one, in the order they are defined. For a UNet that is first level, all between, last level.

What has no weights but those of normalization, such as the norm after the last block, belongs to the block before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class _Grouped(Protocol):
    """A network as timm makes it."""

    def group_matcher(self, coarse: bool = False) -> Any: ...


def blocks(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Every parameter of ``backbone`` once, block by block, input first."""
    groups: list[list[nn.Parameter]] = []
    for group in _groups(backbone):
        if groups and all(parameter.ndim <= 1 for parameter in group):
            groups[-1] += group
        else:
            groups.append(group)
    return groups


def _groups(backbone: nn.Module) -> list[list[nn.Parameter]]:
    if isinstance(backbone, _Grouped):
        from timm.models import group_parameters

        named = dict(backbone.named_parameters())
        layers = group_parameters(backbone, backbone.group_matcher(coarse=False))
        return [[named[name] for name in layers[layer]] for layer in sorted(layers)]
    children = [child for child in backbone.children() if any(True for _ in child.parameters())]
    own = list(backbone.parameters(recurse=False))
    if len(children) == 1 and not own:
        return _groups(children[0])
    return [group for group in (own, *map(_parameters, children)) if group]


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())


def norms(network: nn.Module) -> Sequence[nn.Parameter]:
    """The parameters of normalization layers."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return [parameter for module in network.modules() if isinstance(module, kinds) for parameter in module.parameters()]

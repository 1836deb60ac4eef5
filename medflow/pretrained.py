"""Weights that a backbone starts from: timm's ImageNet weights, a local safetensors file, or none.

Only safetensors is read. A machine without a network is told so within seconds: the cache is looked at
first, and the hub is asked once whether it is there before anything is fetched from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medflow import hub
from medflow.config.sections import ModelConfig, TimmModel
from medflow.errors import ModelError, WeightsUnavailable
from medflow.models import Network
from medflow.records import file_digest

WEIGHTS_FILE: Final = "model.safetensors"


def load_pretrained(network: Network, model: ModelConfig) -> str:
    """Fill the backbone as ``model.pretrained`` says, and return where from, for the card's ``weights_from``.

    Raises WeightsUnavailable where the weights are neither on this machine nor reachable, ModelError where
    they are those of another architecture.
    """
    if model.pretrained == "none":
        return "none"
    if model.pretrained == "imagenet":
        return _from_imagenet(network, model)
    return _from_file(network.backbone, Path(model.pretrained).expanduser(), model)


# -- ImageNet ------------------------------------------------------------------------------------


def _from_imagenet(network: Network, model: ModelConfig) -> str:
    import timm

    card = timm.get_pretrained_cfg(model.name) if isinstance(model, TimmModel) else None
    if card is None or not card.hf_hub_id:
        raise ModelError(
            f"model {model.key!r} has no ImageNet weights",
            hint="set model.pretrained=none, or name a file: model.pretrained=/path/weights.safetensors",
        )
    tensors = load_file(hub.cached(card.hf_hub_id, WEIGHTS_FILE) or _fetched(card.hf_hub_id, model))
    options: dict[str, Any] = {"img_size": model.size} if card.fixed_input_size else {}
    # timm knows how this architecture's checkpoint is renamed, and how 3 input channels become 1.
    filled = timm.create_model(
        model.name,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": tensors},
        num_classes=0,
        in_chans=network.mean.shape[1],
        **options,
    )
    network.backbone.load_state_dict(filled.state_dict())
    return f"imagenet (timm {card.architecture}.{card.tag})"


def _fetched(repository: str, model: ModelConfig) -> Path:
    hint = (
        f"set model.pretrained=none to start from random weights, or model.pretrained=/path/{model.key}.safetensors "
        "to start from a file"
    )
    if not hub.answers():
        raise WeightsUnavailable(
            f"the ImageNet weights of {model.name} are not on this machine, and the hub cannot be reached", hint=hint
        )
    try:
        return hub.fetch(repository, WEIGHTS_FILE)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise WeightsUnavailable(
            f"the ImageNet weights of {model.name} could not be fetched: {reason}", hint=hint
        ) from error


# -- a local file --------------------------------------------------------------------------------


def _from_file(backbone: nn.Module, path: Path, model: ModelConfig) -> str:
    """Strict on the backbone: every tensor must be in the file, in its shape. Others, as a classifier's, are left."""
    if not path.is_file():
        raise WeightsUnavailable(
            f"model.pretrained names {model.pretrained!r}, which is no file",
            hint="expected `imagenet`, `none` or the path of a .safetensors file",
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsUnavailable(
            f"{path.name} is no safetensors file: {error}",
            hint="convert it with safetensors.torch.save_file; pickled checkpoints are not read",
        ) from error
    # A bundle's own weights name the backbone; a file of timm's is the backbone.
    own = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    given, wanted = own or tensors, backbone.state_dict()
    missing = [name for name in wanted if name not in given]
    misshapen = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if missing or misshapen:
        raise ModelError(
            f"{path.name} is not for {model.name}: {len(missing)} of {len(wanted)} tensors are missing and "
            f"{len(misshapen)} have another shape, for example {(missing + misshapen)[0]!r}",
            hint=f"name weights of {model.name} made for the same number of input channels, or model.pretrained=none",
        )
    backbone.load_state_dict({name: given[name] for name in wanted})
    return f"file sha256:{file_digest(path)}"

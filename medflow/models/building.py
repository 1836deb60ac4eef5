"""From a config, or a trained bundle, to its network, and from a network to its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from medflow.config.sections import DualPathModel, ImageTextModel, ModelConfig, MonaiUNet, SmpModel, TimmModel
from medflow.errors import ArtifactError
from medflow.models.classifiers import timm_classifier
from medflow.models.dual_path import dual_path
from medflow.models.image_text import image_text
from medflow.models.narrowing import narrow
from medflow.models.network import Network, Parts
from medflow.models.smp import smp_network
from medflow.models.unet import monai_unet
from medflow.records import Bundle, HeadSpec, Preprocess, PrunedLayer, Structure, TextReading


def build(
    model: ModelConfig,
    heads: tuple[HeadSpec, ...],
    preprocess: Preprocess,
    *,
    text: TextReading | None = None,
    pruned: tuple[PrunedLayer, ...] = (),
    seed: int = 0,
) -> Network:
    """The network of a config, initialised at random from ``seed`` alone; the global generator is left as it was.

    ``text`` says how a model reads reports, where it does. ``pruned`` gives the widths of a pruned network's layers.
    Raises ModelError for an unknown architecture,
    a head that the family has not, or a size that it cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(model, heads, preprocess, text)
        network = Network(parts.backbone, parts.heads, preprocess, parts.neck, parts.paced)
    narrow(network, pruned)
    network.structure = Structure(
        model=model.model_dump(mode="json"), heads=heads, preprocess=preprocess, text=text, pruned=pruned
    )
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def rebuild(structure: Structure) -> Network:
    """A network of the same structure; its weights are to be loaded. Raises ModelError."""
    return build(
        read_config(structure.model), structure.heads, structure.preprocess, text=structure.text,
        pruned=structure.pruned,
    )  # fmt: skip


def load(bundle: Bundle) -> Network:
    """The trained network of a torch bundle, in eval mode. Raises ArtifactError if its weights do not fit its card."""
    if bundle.is_onnx:
        raise ArtifactError(
            f"a bundle of variant {bundle.card.variant!r} holds a graph, no torch weights",
            hint="open it with medflow.scoring.open_scorer, which takes every variant",
        )
    card = bundle.card
    network = build(read_config(card.model), card.heads, card.preprocess, text=card.text, pruned=card.pruned)
    try:
        network.load_state_dict(load_file(bundle.weights))
    except (RuntimeError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{bundle.weights} does not fit its card: {str(error).splitlines()[0]}",
            hint="`medflow verify` finds damaged artifacts; run the step that made this one again",
        ) from error
    return network.eval()


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The state as safetensors takes it: contiguous, on the CPU, detached from the network."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}


def read_config(section: Mapping[str, object]) -> ModelConfig:
    """``ModelCard.model`` as a config again."""
    return TypeAdapter(ModelConfig).validate_python(dict(section))


def _parts(model: ModelConfig, heads: tuple[HeadSpec, ...], preprocess: Preprocess, text: TextReading | None) -> Parts:
    match model:
        case TimmModel():
            return timm_classifier(model, heads, preprocess)
        case MonaiUNet():
            return monai_unet(model, heads, preprocess)
        case SmpModel():
            return smp_network(model, heads, preprocess)
        case DualPathModel():
            return dual_path(model, heads, preprocess)
        case ImageTextModel():
            return image_text(model, heads, preprocess, text)

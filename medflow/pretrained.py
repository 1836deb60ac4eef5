"""Weights that a backbone starts from: ImageNet's, from timm's or SMP's hub, a local safetensors file, or none.

Only safetensors is read. A machine without a network is told so within seconds: the cache is looked at
first, and the hub is asked once whether it is there before anything is fetched from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medflow import hub, zoo
from medflow.config.sections import DualPathModel, ImageTextModel, ModelConfig, SmpModel, TimmModel
from medflow.errors import ModelError, WeightsUnavailable
from medflow.models import Network
from medflow.models.encoders import timm_backbone
from medflow.models.smp import TIMM_PREFIX, encoder_name, filled_encoder
from medflow.records import PixelSpec, file_digest

WEIGHTS_FILE: Final = "model.safetensors"


@dataclass(frozen=True)
class Filled:
    """What became of published tensors."""

    backbone: nn.Module
    """Of the config's size and channels."""
    lacking: tuple[str, ...] = ()
    """Names of its tensors that the file did not give, and that are as the architecture begins."""


Fill = Callable[[Mapping[str, Tensor]], Filled]


@dataclass(frozen=True)
class Published:
    """Where a backbone's ImageNet weights are published, and how a backbone is made of them."""

    repository: str
    """On the hub; empty where none are published."""
    revision: str | None
    title: str
    fill: Fill


def load_pretrained(network: Network, model: ModelConfig, file: Path | None) -> str:
    """Fill the backbone as ``model.pretrained`` says, and return where from, for the card's ``weights_from``.

    ``file`` is what it names, on this machine; None for ``imagenet`` and ``none``.

    Raises WeightsUnavailable where the weights are neither on this machine nor reachable, ModelError where
    they are those of another architecture.
    """
    if model.pretrained == "none":
        return "none"
    published = _published(model, network.mean.shape[1])
    if model.pretrained == "imagenet":
        return _from_imagenet(network, model, published)
    assert file is not None
    return _from_file(network.backbone, file, model, published)


def _published(model: ModelConfig, channels: int) -> Published | None:
    """None for a family that nobody trained on ImageNet."""
    spec = PixelSpec(height=model.size or 0, width=model.size or 0, channels=channels)
    match model:
        case TimmModel() | ImageTextModel():
            return _of_timm(model.name, lambda tensors: timm_backbone(model.name, spec, weights=tensors))
        case DualPathModel():
            return _of_timm(
                model.encoder, lambda tensors: timm_backbone(model.encoder, spec, levels=True, weights=tensors)
            )
        case SmpModel():
            return _of_smp(model, spec)
        case _:
            return None


def _of_timm(name: str, made: Callable[[Mapping[str, Tensor]], nn.Module]) -> Published:
    """``made`` builds with timm, which fills what it finds and only logs what the file lacks."""
    timm = zoo.timm()

    def fill(tensors: Mapping[str, Tensor]) -> Filled:
        with _loaded() as given:
            backbone = made(tensors)
        own = backbone.state_dict(keep_vars=True)
        return Filled(backbone, tuple(name for name, tensor in own.items() if id(tensor) not in given))

    card = timm.get_pretrained_cfg(name)
    title = f"timm {card.architecture}.{card.tag}" if card is not None else ""
    return Published((card.hf_hub_id or "") if card is not None else "", None, title, fill)


def _of_smp(model: SmpModel, spec: PixelSpec) -> Published:
    from segmentation_models_pytorch.encoders import encoders

    name = encoder_name(model)

    def made(tensors: Mapping[str, Tensor]) -> nn.Module:
        return filled_encoder(model, spec, tensors)

    if name.startswith(TIMM_PREFIX):
        return _of_timm(name.removeprefix(TIMM_PREFIX), made)
    settings = encoders[name]["pretrained_settings"].get("imagenet", {"repo_id": "", "revision": None})
    # SMP loads its own encoders strictly: a file that lacks a tensor raises.
    return Published(settings["repo_id"], settings["revision"], f"smp {name}", lambda tensors: Filled(made(tensors)))


@contextmanager
def _loaded() -> Iterator[Mapping[int, Tensor]]:
    """By id, every tensor that a state dict has a value for, of all that are loaded within.

    timm drops what ``load_state_dict`` returns, and may wrap the network afterwards, which renames its tensors and
    keeps them; so torch's method is stood in for while it builds.
    """
    given: dict[int, Tensor] = {}
    load = nn.Module.load_state_dict

    def noting(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        result = load(module, *arguments, **options)
        own = module.state_dict(keep_vars=True)
        given.update({id(own[name]): own[name] for name in own.keys() - set(result.missing_keys)})
        return result

    nn.Module.load_state_dict = noting  # type: ignore[method-assign, assignment]
    try:
        yield given
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


# -- ImageNet ------------------------------------------------------------------------------------


def _from_imagenet(network: Network, model: ModelConfig, published: Published | None) -> str:
    if published is None or not published.repository:
        raise ModelError(
            f"model {model.key!r} has no ImageNet weights",
            hint="set model.pretrained=none, or name a file: model.pretrained=/path/weights.safetensors",
        )
    tensors = load_file(
        hub.cached(published.repository, WEIGHTS_FILE, revision=published.revision) or _fetched(published, model)
    )
    filled = published.fill(tensors)
    if filled.lacking:
        raise ModelError(
            f"{published.repository} lacks {len(filled.lacking)} tensors of {model.key}, for example "
            f"{filled.lacking[0]!r}",
            hint="set model.pretrained=none; or the file in the hub's cache is damaged, then remove it",
        )
    network.backbone.load_state_dict(filled.backbone.state_dict())
    return f"imagenet ({published.title})"


def _fetched(published: Published, model: ModelConfig) -> Path:
    hint = (
        f"set model.pretrained=none to start from random weights, or model.pretrained=/path/{model.key}.safetensors "
        f"to start from a file, such as {WEIGHTS_FILE} of {published.repository}"
    )
    if not hub.answers():
        raise WeightsUnavailable(
            f"the ImageNet weights of {model.key} are not on this machine, and the hub cannot be reached", hint=hint
        )
    try:
        return hub.fetch(published.repository, WEIGHTS_FILE, revision=published.revision)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise WeightsUnavailable(
            f"the ImageNet weights of {model.key} could not be fetched: {reason}", hint=hint
        ) from error


# -- a local file --------------------------------------------------------------------------------


def _from_file(backbone: nn.Module, path: Path, model: ModelConfig, published: Published | None) -> str:
    """A bundle's own weights, a backbone's, or a file as its publisher wrote it, made for 3 channels or another size.

    Strict: every tensor of the backbone must come from the file. Others, as a classifier's, are left.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsUnavailable(
            f"{path.name} is no safetensors file: {error}",
            hint="convert it with safetensors.torch.save_file; pickled checkpoints are not read",
        ) from error
    own = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    given: Mapping[str, Tensor] = own or tensors
    wanted = backbone.state_dict()
    unfit = [name for name in wanted if name not in given or given[name].shape != wanted[name].shape]
    if unfit:
        given = _converted(tensors, unfit, len(wanted), path, model, published)
    backbone.load_state_dict({name: given[name] for name in wanted})
    return f"file {path.name}, sha256:{file_digest(path)}"


def _converted(
    tensors: Mapping[str, Tensor],
    unfit: list[str],
    wanted: int,
    path: Path,
    model: ModelConfig,
    published: Published | None,
) -> Mapping[str, Tensor]:
    """The file read as its publisher's, or ModelError with what it lacks."""
    refusal = ModelError(
        f"{path.name} is not for {model.key}: {len(unfit)} of {wanted} tensors are missing or have another shape, for "
        f"example {unfit[0]!r}",
        hint=f"name weights of {model.key}, or set model.pretrained=none",
    )
    if published is None:
        raise refusal
    try:
        filled = published.fill(tensors)
    except Exception as error:  # what timm and SMP make of tensors they do not know, they raise as they please
        raise refusal from error
    if filled.lacking:
        raise refusal
    return filled.backbone.state_dict()

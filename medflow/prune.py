"""Structured pruning: whole channels leave, the network gets smaller and faster, then it is fine-tuned.

torch-pruning's dependency graph (Fang et al. 2023, DepGraph, arXiv 2301.12900) finds which layers must lose the same
channels; of every group the channels with the smallest L2 norm go. Masks of zeros, as in
``torch.nn.utils.prune``, make nothing smaller and are not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from medflow import __version__, models
from medflow.bundle import finish
from medflow.checkpoint import Checkpoints
from medflow.config.sections import PruneConfig, TrainConfig
from medflow.errors import ModelError
from medflow.fit import Data, Learn, fit
from medflow.models.narrowing import width_of
from medflow.parity import measure
from medflow.progress import say
from medflow.records import Bundle, Manifest, Pixels, PixelSpec, PrunedLayer, content, digest_of
from medflow.scoring import open_scorer
from medflow.text import Tokenizer
from medflow.tracking import Files, Tracker
from medflow.train import save_weights

HINT = "set `prune.enabled=false` for this model"
#: Names of the layers whose output is cut into attention heads, in timm and SMP.
ATTENTION = frozenset({"qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj"})


def prune(
    bundle: Bundle,
    train: Manifest,
    val: Manifest,
    pixels: Pixels,
    config: PruneConfig,
    training: TrainConfig,
    *,
    work: Path,
    tracker: Tracker,
    checkpoints: Files,
    learn: Learn = fit,
) -> Bundle:
    """The bundle with ``config.ratio`` of its channels removed and fine-tuned by ``config.stage``, below ``work``.

    The widths left are in ``card.pruned``, so that ``models.build`` makes the same network again. Raises ModelError
    where the network cannot be pruned or rebuilt, and what ``fit`` raises.
    """
    if bundle.card.variant != "torch":
        raise ModelError(
            f"{bundle.card.name} ({bundle.card.variant}) cannot be pruned, expected variant torch",
            hint="prune the trained bundle, before export",
        )
    network, layers = narrow(bundle, config)
    after, image = bundle.card.model_copy(update={"pruned": layers}), _core_input(bundle.card.preprocess.pixels)[:1]
    was, cost = _cost(models.load(bundle), image), _cost(network, image)
    say(f"pruned {after.name}: {was[0]:,} → {cost[0]:,} multiply-adds, {was[1]:,} → {cost[1]:,} parameters")
    data = Data(train, val, pixels, after.heads, after.preprocess, Tokenizer.of(bundle))
    tuning = training.model_copy(update={"stages": (config.stage,)})
    key = digest_of([__version__, data.digest(), content(tuning.determining()), bundle.digest(), content(layers)])
    store = Checkpoints(checkpoints, key)
    log = learn(network, data, tuning, tracker=tracker, checkpoints=store)
    card = after.model_copy(
        update={
            "variant": "pruned",
            "training": log,
            "training_config": tuning.determining().model_dump(mode="json"),
            "parameters": cost[1],
            "macs": cost[0],
            "code_version": __version__,
            "notes": (*after.notes, *log.notes, _note(config, layers, was, cost)),
        }
    )
    bundle.share_with(work)
    pruned = finish(work / "pruned", card, save_weights(network, work), val, pixels)
    store.clear()
    return _with_parity(bundle, pruned, val, pixels)


def narrow(bundle: Bundle, config: PruneConfig) -> tuple[models.Network, tuple[PrunedLayer, ...]]:
    """The bundle's network with fewer channels, rebuilt from the list of its layers' widths. Raises ModelError."""
    card = bundle.card
    network, images = models.load(bundle), _core_input(card.preprocess.pixels)
    widths = _widths_of(network)
    try:
        _remove_channels(network, images, config)
        layers = tuple(_entry(name, new) for name, new in _widths_of(network).items() if new != widths[name])
        rebuilt = models.build(
            models.read_config(card.model), card.heads, card.preprocess, text=card.text, pruned=layers
        )
        rebuilt.load_state_dict(models.tensors_of(network))
        difference = _difference(network, rebuilt.eval(), images)
    except ModelError:
        raise
    except Exception as error:  # whatever an architecture makes of missing channels, it cannot be pruned
        raise ModelError(f"{card.name} cannot be pruned: {_first_line(error)}", hint=HINT) from error
    if not layers:
        raise ModelError(
            f"pruning {config.ratio:.0%} of {card.name} in steps of {config.round_to} channels removes none",
            hint="raise `prune.ratio`, lower `prune.round_to`, or set `prune.enabled=false`",
        )
    if difference > 1e-4:
        raise ModelError(f"{card.name}, rebuilt after pruning, differs by {difference:.2g} in logits", hint=HINT)
    return rebuilt, layers


def _remove_channels(network: models.Network, images: Tensor, config: PruneConfig) -> None:
    import torch_pruning

    with warnings.catch_warnings(), _plain_activations(network):
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            _Core(network),
            images,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=config.ratio,
            round_to=config.round_to,
            ignored_layers=[*output_layers(network), *attention_layers(network), *_readers(network)],
        )
        fixed = _fixed(network)
        for group in pruner.step(interactive=True):
            if not any(_keeps(dependency.target.module, fixed) for dependency, _ in group):
                group.prune()


def _keeps(target: object, fixed: frozenset[int]) -> bool:
    """Whether a member of a group keeps all its channels, and with it the group.

    ``fixed`` are the ids of the parameters that cannot be rebuilt at another width. A group that reaches one of them,
    or a layer norm of the backbone, is the residual stream of a transformer or its like, which runs through every
    block; what is pruned there are the hidden layers between.
    """
    if isinstance(target, nn.Parameter):
        return id(target) in fixed
    return any(id(parameter) in fixed for parameter in target.parameters()) if isinstance(target, nn.Module) else False


def _fixed(network: models.Network) -> frozenset[int]:
    """Ids of the parameters of layers that keep their width: the backbone's layer norms, and what has no width."""
    norms = {layer for layer in network.backbone.modules() if isinstance(layer, nn.LayerNorm)}
    movable = [layer for layer in network.modules() if width_of(layer) and layer not in norms]
    # Others beside weight and bias, such as a weight-standardised convolution's gain, are not rebuilt.
    free = {id(getattr(layer, name)) for layer in movable for name in ("weight", "bias")}
    return frozenset(id(parameter) for parameter in network.parameters() if id(parameter) not in free)


@contextmanager
def _plain_activations(network: nn.Module) -> Iterator[None]:
    """LeakyReLU in place of each PReLU with one parameter, for a while.

    torch-pruning 1.6 takes such a PReLU for a layer without channels and then cannot follow them into the UNet's
    concatenations. It has nothing to prune, so it comes back as it was.
    """
    single = {name: layer for name, layer in network.named_modules() if _is_single(layer)}
    for name in single:
        network.set_submodule(name, nn.LeakyReLU())
    try:
        yield
    finally:
        for name, layer in single.items():
            network.set_submodule(name, layer)


def _is_single(layer: nn.Module) -> bool:
    return isinstance(layer, nn.PReLU) and layer.num_parameters == 1


class _Core(nn.Module):
    """What may be pruned, behind the normalization. Its parameters have the names that they have in the network."""

    def __init__(self, network: models.Network) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.neck = network.neck
        self.heads = network.heads

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.neck(self.backbone(pixels))
        return [head(features) for head in self.heads.values()]


def _readers(network: models.Network) -> list[nn.Module]:
    """What reads reports, and joins them to images: only the images' own layers lose channels."""
    return [layer for module in network.modules() if isinstance(module, models.Reader) for layer in module.modules()]


def output_layers(network: models.Network) -> list[nn.Module]:
    """The last weighted layer of each head: its channels are the labels."""
    weighted = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return [[layer for layer in head.modules() if isinstance(layer, weighted)][-1] for head in network.heads.values()]


def attention_layers(network: models.Network) -> list[nn.Module]:
    """Blocks that make queries, keys and values: their channels are cut into heads, whose number no shape tells."""
    blocks = {name.rpartition(".")[0] for name, _ in network.named_modules() if name.rpartition(".")[2] in ATTENTION}
    return [network.get_submodule(block) for block in sorted(blocks)]


# -- widths --------------------------------------------------------------------------------------


def _widths_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """(in, out) channels of every layer that has channels, by dotted name."""
    found = {name: width_of(layer) for name, layer in network.named_modules()}
    return {name: widths for name, widths in found.items() if widths is not None}


def _entry(name: str, widths: tuple[int, int]) -> PrunedLayer:
    return PrunedLayer(name=name, kept_in=widths[0], kept_out=widths[1])


@torch.no_grad()
def _difference(first: models.Network, second: models.Network, images: Tensor) -> float:
    """Largest difference of logits: absolute up to 1, relative to the largest logit above."""
    pairs = list(zip(_Core(first.eval())(images), _Core(second)(images), strict=True))
    return max(float((one - two).abs().max() / one.abs().max().clamp(min=1.0)) for one, two in pairs)


def _core_input(spec: PixelSpec) -> Tensor:
    """Two normalized images of noise."""
    return torch.randn((2, spec.channels, spec.height, spec.width), generator=torch.Generator().manual_seed(0))


def _cost(network: models.Network, image: Tensor) -> tuple[int, int]:
    """Multiply-adds for one image, and parameters."""
    import torch_pruning

    macs, parameters = torch_pruning.utils.count_ops_and_params(_Core(network), image)
    return int(macs), int(parameters)


# -- the card ------------------------------------------------------------------------------------


def _note(config: PruneConfig, layers: tuple[PrunedLayer, ...], was: tuple[int, int], now: tuple[int, int]) -> str:
    return (
        f"pruned {config.ratio:.0%} of the channels wherever they may leave, {len(layers)} layers: "
        f"{was[0]:,} → {now[0]:,} multiply-adds, {was[1]:,} → {now[1]:,} parameters"
    )


def _with_parity(reference: Bundle, pruned: Bundle, val: Manifest, pixels: Pixels) -> Bundle:
    parity = measure(open_scorer(reference), open_scorer(pruned), reference.card, val, pixels)
    return Bundle(root=pruned.root, card=pruned.card.model_copy(update={"parity": parity})).write_card()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""How a model's input is made: the stored pixels it takes, and the statistics they are normalized with."""

from __future__ import annotations

from medflow import zoo
from medflow.config.sections import DualPathModel, ImageTextModel, ModelConfig, SmpModel, TimmModel
from medflow.errors import ModelError
from medflow.models.smp import TIMM_PREFIX, encoder_name
from medflow.records import ChannelStats, Normalization, Pixels, Preprocess

#: ImageNet's channel statistics, in 0 to 1, for models that bring none of their own.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Encoders of SMP's own whose weights were trained with others. SMP keeps them in each repository's config.json.
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMP_STATISTICS = dict.fromkeys(("inceptionresnetv2", "inceptionv4", "xception"), _HALF)


def preprocess_for(model: ModelConfig, normalization: Normalization, pixels: Pixels) -> Preprocess:
    """Pixel spec and statistics of a model's input, from the store of its size.

    ``stats: imagenet`` means those its ImageNet weights were trained with, averaged for gray images, where
    timm sums the first layer's weights. Raises ModelError where no store or statistics have the model's size.
    """
    spec = next((store.spec for store in pixels.index.stores if store.spec.height == model.size), None)
    measured = next((entry for entry in normalization.sizes if entry.height == model.size), None)
    if spec is None or (measured is None and model.stats == "dataset"):
        stored = ", ".join(str(store.spec.height) for store in pixels.index.stores) or "none"
        raise ModelError(
            f"model {model.key!r} takes {model.size} pixels, and the stored sizes are {stored}",
            hint="set the model's `size` to a stored one, or run `ingest` again",
        )
    mean, std = _statistics(model, measured)
    if len(mean) != spec.channels:
        mean, std = (sum(mean) / len(mean),) * spec.channels, (sum(std) / len(std),) * spec.channels
    return Preprocess(pixels=spec, mean=mean, std=std)


def _statistics(model: ModelConfig, measured: ChannelStats | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if model.stats == "dataset" and measured is not None:
        return measured.mean, measured.std
    if model.stats == "unit":
        return (0.0,), (1.0,)
    return imagenet_statistics(model)


def imagenet_statistics(model: ModelConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that the model's ImageNet weights were trained with."""
    timm = zoo.timm()

    match model:
        case TimmModel() | ImageTextModel():
            card = timm.get_pretrained_cfg(model.name)
        case DualPathModel():
            card = timm.get_pretrained_cfg(model.encoder)
        case SmpModel() if model.encoder in SMP_STATISTICS:
            return SMP_STATISTICS[model.encoder]
        case SmpModel():
            name = encoder_name(model)
            card = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX)) if name.startswith(TIMM_PREFIX) else None
        case _:
            card = None
    return (IMAGENET_MEAN, IMAGENET_STD) if card is None else (tuple(card.mean), tuple(card.std))

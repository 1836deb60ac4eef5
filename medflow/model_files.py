"""The files that a model starts from: settings name them, and their bytes decide what is trained.

They lie on this machine, or in a bucket as ``s3://BUCKET/KEY``. ``named`` tells their digests, before a run and for
its cache keys; ``bring`` has them on this machine, where the training is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from medflow import s3
from medflow.config.sections import ImageTextModel, ModelConfig
from medflow.errors import WeightsUnavailable
from medflow.records import file_digest
from medflow.substitute import encoder_folder

#: What is read of a text encoder's folder, which may hold the same weights as pickles and for other frameworks too.
READ = ("*.json", "*.safetensors", "vocab.txt")


@dataclass(frozen=True)
class ModelFiles:
    """What a model's settings name, on this machine."""

    weights: Path | None = None
    """The file of ``pretrained``; None for ``imagenet`` and ``none``."""
    encoder: Path | None = None
    """The folder of ``text.encoder``; None for one of the hub, a small one, and a model that reads no reports."""


def named(models: Sequence[ModelConfig], access: s3.Access = s3.AMBIENT) -> tuple[tuple[str, str], ...]:
    """Name and digest of each file that the models' settings name; none for what the hub publishes.

    The digest is the sha256 of a file of this machine, and what the store says of one in a bucket. Raises
    WeightsUnavailable where the weights are no file, and what the store's refusals become.
    """
    return tuple(file for model in models for file in (*_named_weights(model, access), *_named_encoder(model, access)))


def bring(model: ModelConfig, to: Path, access: s3.Access = s3.AMBIENT) -> ModelFiles:
    """The files on this machine; those in a bucket are fetched below ``to``. Raises as ``named`` does."""
    weights, encoder = weights_of(model), encoder_of(model)
    return ModelFiles(
        weights=None if weights is None else _file(weights, to, access),
        encoder=None if encoder is None else _folder(encoder, to, access),
    )


def names(model: ModelConfig) -> tuple[str, ...]:
    """The last parts of what a model's settings name."""
    return tuple(PurePosixPath(path).name for path in (weights_of(model), encoder_of(model)) if path is not None)


def weights_of(model: ModelConfig) -> str | None:
    """What ``pretrained`` names, where it names a file."""
    return None if model.pretrained in ("imagenet", "none") else model.pretrained


def encoder_of(model: ModelConfig) -> str | None:
    """What ``text.encoder`` names, where it names a folder."""
    if not isinstance(model, ImageTextModel):
        return None
    encoder = model.text.encoder
    return encoder if s3.Place.is_meant(encoder) or encoder_folder(encoder) is not None else None


def is_read(path: str) -> bool:
    """Whether a file of a text encoder's folder, by its relative path, is read."""
    return "/" not in path and any(fnmatch(path, pattern) for pattern in READ)


def local_file(pretrained: str) -> Path:
    """A weights file of this machine. Raises WeightsUnavailable where there is none."""
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise WeightsUnavailable(
            f"model.pretrained names {pretrained!r}, which is no file",
            hint="expected `imagenet`, `none`, or a .safetensors file: its path, or s3://BUCKET/KEY",
        )
    return path


def _named_weights(model: ModelConfig, access: s3.Access) -> tuple[tuple[str, str], ...]:
    weights = weights_of(model)
    if weights is None:
        return ()
    if s3.Place.is_meant(weights):
        place = s3.Place.of(weights)
        return ((PurePosixPath(place.prefix).name, s3.file_fingerprint(place, access)),)
    path = local_file(weights)
    return ((path.name, file_digest(path)),)


def _named_encoder(model: ModelConfig, access: s3.Access) -> tuple[tuple[str, str], ...]:
    encoder = encoder_of(model)
    if encoder is None:
        return ()
    if s3.Place.is_meant(encoder):
        place = s3.Place.of(encoder)
        return ((PurePosixPath(place.prefix).name, s3.fingerprint(place, access)),)
    inside = sorted(path for path in Path(encoder).expanduser().iterdir() if path.is_file() and is_read(path.name))
    return tuple((path.name, file_digest(path)) for path in inside)


def _file(pretrained: str, to: Path, access: s3.Access) -> Path:
    if not s3.Place.is_meant(pretrained):
        return local_file(pretrained)
    place = s3.Place.of(pretrained)
    return s3.bring_file(place, s3.file_fingerprint(place, access), to, access)


def _folder(encoder: str, to: Path, access: s3.Access) -> Path:
    if not s3.Place.is_meant(encoder):
        return Path(encoder).expanduser()
    place = s3.Place.of(encoder)
    return s3.bring_matching(place, s3.fingerprint(place, access), is_read, to, access)

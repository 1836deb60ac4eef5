"""What lies on this machine and no pod can see: into the stack's object store, by content, before the run."""

from __future__ import annotations

from pathlib import Path

from medflow import model_files, s3
from medflow.config.sections import ImageTextModel, ModelConfig, RunConfig, SourceConfig
from medflow.config.sections.place import READING, PlaceConfig
from medflow.errors import ConfigError
from medflow.platform import stack, store_access

SOURCES, MODELS = "sources", "models"
"""In the artifact store, beside the artifacts."""


def in_reach_of_pods(config: RunConfig, place: PlaceConfig) -> RunConfig:
    """The same run, with every local file and folder that it reads put into the active stack's object store.

    Those are the source and its metadata file, unless they lie on a volume of the place, and what models start from.
    The same content is sent once, and gives the
    same settings again. Raises ConfigError where the stack's artifact store is no S3 store, WeightsUnavailable where a
    model names no file, and what ``s3.upload`` does.
    """
    models = tuple(_model(model) for model in config.models)
    return config.model_copy(update={"source": _source(config.source, place), "models": models})


def _source(config: SourceConfig, place: PlaceConfig) -> SourceConfig:
    changes: dict[str, str] = {}
    if config.kind in ("folder", "zip") and config.path and not place.on_volume(config.path):
        changes |= {"kind": "s3", "path": s3.upload(_here(config.path), _place(SOURCES), store_access.of_store())}
    if config.metadata and not s3.Place.is_meant(config.metadata) and not place.on_volume(config.metadata):
        changes["metadata"] = s3.upload_file(_here(config.metadata), _place(SOURCES), store_access.of_store())
    return config.model_copy(update=changes)


def _here(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise ConfigError(
            f"{path} is neither on this machine nor on a volume of the place",
            hint=f"check the path; a volume must be given to each of {', '.join(READING)} in the place's YAML",
        )
    return found


def _model(model: ModelConfig) -> ModelConfig:
    weights, encoder = model_files.weights_of(model), model_files.encoder_of(model)
    if weights is not None and not s3.Place.is_meant(weights):
        model = model.model_copy(update={"pretrained": _sent(model_files.local_file(weights))})
    if isinstance(model, ImageTextModel) and encoder is not None and not s3.Place.is_meant(encoder):
        model = model.model_copy(update={"text": model.text.model_copy(update={"encoder": _sent(Path(encoder))})})
    return model


def _sent(path: Path) -> str:
    """Under its own name, which the model's card tells."""
    return s3.upload_named(path, _place(MODELS), store_access.of_store(), model_files.is_read)


def _place(folder: str) -> s3.Place:
    path = str(stack.client().active_stack.artifact_store.path)
    if not s3.Place.is_meant(path):
        raise ConfigError(
            "the stack's artifact store is no S3 store, so files of this machine cannot be put in reach of pods",
            hint="name them as s3://BUCKET/PREFIX, a source also as kaggle",
        )
    return s3.Place.of(path).below(folder)

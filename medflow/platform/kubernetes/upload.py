"""What lies on this machine and no pod can see: into the stack's object store, by content, before the run."""

from __future__ import annotations

from pathlib import Path

from medflow import s3
from medflow.config.sections import SourceConfig
from medflow.errors import ConfigError
from medflow.platform import stack, store_access

FOLDER = "sources"
"""In the artifact store, beside the artifacts."""


def in_reach_of_pods(config: SourceConfig) -> SourceConfig:
    """The same source, its folder, archive and metadata file put into the active stack's object store where need be.

    The same content is sent once, and gives the same settings again. Raises ConfigError where the stack's artifact
    store is no S3 store, and what ``s3.upload`` does.
    """
    changes: dict[str, str] = {}
    if config.kind in ("folder", "zip") and config.path:
        changes |= {"kind": "s3", "path": s3.upload(Path(config.path), _place(), store_access.of_store())}
    if config.metadata and not s3.Place.is_meant(config.metadata):
        path = Path(config.metadata).expanduser()
        changes["metadata"] = s3.upload_file(path, _place(), store_access.of_store())
    return config.model_copy(update=changes)


def _place() -> s3.Place:
    path = str(stack.client().active_stack.artifact_store.path)
    if not s3.Place.is_meant(path):
        raise ConfigError(
            "the stack's artifact store is no S3 store, so a local source cannot be put in reach of pods",
            hint="give the source as s3://BUCKET/PREFIX or kaggle, or put it on a volume that the pods mount",
        )
    return s3.Place.of(path).below(FOLDER)

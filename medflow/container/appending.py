"""One layer more on an image that lies in a registry, as an image of its own, named by what is in it.

The layers below are not moved: they are in the repository already, or are taken over from their own. A tag holds the
digest of its manifest, which holds those of everything in the image, so it can never come to mean something else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medflow.container.layer import Layer
from medflow.container.names import ImageName
from medflow.container.repository import DOCKER_MANIFEST, INDEXES, Manifest, Repository, digest_of_bytes
from medflow.errors import ArtifactError, ConfigError

DIGITS = 12
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
#: Media types of a tar that is not compressed.
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Image:
    """An image for one platform, made and not pushed."""

    manifest: Manifest
    config: bytes = field(repr=False)
    below: tuple[dict[str, Any], ...]
    """Descriptors of the layers of the base, lowest first."""


@dataclass(frozen=True)
class Prepared:
    """An image that is known to the last byte, and perhaps not pushed."""

    name: ImageName
    """With tag and digest."""
    base_digest: str
    """The manifest of the image below."""
    top: Manifest
    images: tuple[Image, ...]
    layer: Layer
    source: Repository
    target: Repository

    def push(self) -> bool:
        """Push what the registry lacks; False where it had this very image already.

        Raises ServingError where the registry refuses, ArtifactError where it gives back something else.
        """
        tag = str(self.name.tag)
        there = self.target.manifest(tag)
        if there is not None and there.digest != self.top.digest:
            raise ArtifactError(f"the registry has another image under the tag {tag}", hint="remove that tag")
        if there is not None:
            return False
        for image in self.images:
            _push(image, self.layer, self.source, self.target)
        self.target.put_manifest(tag, self.top)
        _look_back(self.target, self.name, self.layer)
        return True


def prepare(base: ImageName, layer: Layer, to: ImageName, *, tag: str, labels: Mapping[str, str]) -> Prepared:
    """``layer`` on ``base``, for the repository of ``to``, as ``TAG-<12 of its digest>``. Nothing is pushed yet.

    Raises ConfigError where the base is not there, ServingError where its registry refuses.
    """
    source, target = Repository(base.host, base.path), Repository(to.host, to.path)
    below = source.manifest(base.reference)
    if below is None:
        raise ConfigError(
            f"there is no image {base}", hint="`make images` pushes it; `serving_image` of the stack's YAML names it"
        )
    images = tuple(_image(source, part, layer, labels) for part in _platforms(source, below))
    top = _index(below, images) if below.kind in INDEXES else images[0].manifest
    name = to.at(tag=f"{tag}-{top.digest.removeprefix('sha256:')[:DIGITS]}", digest=top.digest)
    return Prepared(name, below.digest, top, images, layer, source, target)


def _platforms(source: Repository, below: Manifest) -> list[Manifest]:
    """The image itself, or those for Linux that an index names; attestations about the base say nothing of ours."""
    if below.kind not in INDEXES:
        return [below]
    found = [source.manifest(entry["digest"]) for entry in _for_linux(below)]
    if not found or None in found:
        raise ConfigError(f"{source} lacks images for Linux that its index names", hint="push that image again")
    return [manifest for manifest in found if manifest is not None]


def _for_linux(index: Manifest) -> list[dict[str, Any]]:
    return [entry for entry in index.content["manifests"] if entry.get("platform", {}).get("os") == "linux"]


def _image(source: Repository, below: Manifest, layer: Layer, labels: Mapping[str, str]) -> Image:
    manifest = below.content
    docker = below.kind == DOCKER_MANIFEST
    config = _config(source.document(manifest["config"]["digest"]), layer, labels)
    descriptors = tuple(manifest["layers"])
    top = _descriptor(DOCKER_LAYER if docker else OCI_LAYER, layer.digest, layer.bytes)
    changed = {
        "config": _descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, digest_of_bytes(config), len(config)),
        "layers": [*descriptors, top],
    }
    return Image(Manifest(_json(manifest | changed), below.kind), config, descriptors)


def _config(raw: bytes, layer: Layer, labels: Mapping[str, str]) -> bytes:
    """The configuration of the image below, with one layer more. Its time of creation stays: content alone counts."""
    config = json.loads(raw)
    config["rootfs"]["diff_ids"].append(layer.digest)
    config.setdefault("history", []).append({"created": config.get("created"), "created_by": "medflow deploy"})
    run = config.setdefault("config", {})
    run["Labels"] = {**(run.get("Labels") or {}), **labels}
    return _json(config)


def _index(below: Manifest, images: tuple[Image, ...]) -> Manifest:
    """An index of the images made, which stand in the order of those below."""
    made = [
        {
            **_descriptor(image.manifest.kind, image.manifest.digest, len(image.manifest.raw)),
            "platform": entry["platform"],
        }
        for image, entry in zip(images, _for_linux(below), strict=True)
    ]
    return Manifest(_json(below.content | {"manifests": made}), below.kind)


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


# -- pushing -------------------------------------------------------------------------------------


def _push(image: Image, layer: Layer, source: Repository, target: Repository) -> None:
    for descriptor in image.below:
        _take_over(descriptor, source, target)
    if not target.has_blob(layer.digest):
        target.push_blob(layer.digest, layer.path)
    target.push_blob(digest_of_bytes(image.config), image.config)
    target.put_manifest(image.manifest.digest, image.manifest)


def _take_over(descriptor: dict[str, Any], source: Repository, target: Repository) -> None:
    """A layer of the base: there already, mounted from another repository, or copied from another registry."""
    digest = descriptor["digest"]
    if target.has_blob(digest) or (source.host == target.host and target.mount(digest, source.path)):
        return
    with tempfile.NamedTemporaryFile(prefix="medflow-layer-") as copy:
        for part in source.blob(digest):
            copy.write(part)
        copy.flush()
        target.push_blob(digest, Path(copy.name))


def _look_back(target: Repository, name: ImageName, layer: Layer) -> None:
    """Whether the registry gives what it was given. Raises ArtifactError."""
    found = target.manifest(str(name.tag))
    if found is None or found.digest != name.digest:
        raise ArtifactError(f"the registry did not keep {name}", hint="look into its log, and whether it has room")
    for _ in target.blob(layer.digest):
        pass  # compared with its digest after the last piece

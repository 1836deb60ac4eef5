"""The image of a model in service: the serving image, and the Bento's files as one layer on top of it."""

from __future__ import annotations

import re
from pathlib import Path

from medflow.config.sections.stack import StackConfig
from medflow.container import ImageName, Prepared, prepare, write_layer
from medflow.errors import ConfigError
from medflow.records import Package
from medflow.server import import_package

FOLDER = "bento"
"""Where the serving image looks for its model, below /."""
STEP, SERVING = "medflow-step", "medflow-serving"


def prepare_image(package: Package, stack: StackConfig, work: Path) -> Prepared:
    """The image of a package, for the stack's registry; nothing is pushed yet. ``work`` is needed until it is.

    Raises ArtifactError where the package is damaged, ConfigError where there is no serving image.
    """
    base = serving_image(stack)
    layer = write_layer(import_package(package, work), work / "layer.tar", at=FOLDER)
    facts = package.facts
    labels = {"medflow.dev/bento": facts.tag, "medflow.dev/package-digest": facts.content_digest}
    target = ImageName.parse(f"{stack.registry}/{base.path.rpartition('/')[2]}")
    return prepare(base, layer, target, tag=re.sub(r"[^A-Za-z0-9_.-]", "-", facts.tag), labels=labels)


def serving_image(stack: StackConfig) -> ImageName:
    """What models are served in. Raises ConfigError where the stack does not tell."""
    if stack.serving_image:
        return ImageName.parse(stack.serving_image)
    step = ImageName.parse(stack.image)
    folder, slash, name = step.path.rpartition("/")
    if name != STEP or step.tag is None:
        raise ConfigError(
            f"the stack's YAML has no serving_image, and {step} does not tell which it is",
            hint=f"add `serving_image: {stack.registry}/{SERVING}:TAG` to it; `make images` prints the tag",
        )
    return ImageName(step.host, f"{folder}{slash}{SERVING}", step.tag)

"""Names of images: ``registry:port/folder/name:tag@sha256:...``, as Docker reads them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Self

from medflow.errors import ConfigError

DOCKER_HUB = "docker.io"
NAME = re.compile(
    r"^(?P<path>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)


@dataclass(frozen=True)
class ImageName:
    host: str
    """Registry with its port; ``docker.io`` where the name has none."""
    path: str
    """The repository: folders and name."""
    tag: str | None = None
    digest: str | None = None
    """``sha256:`` and 64 hex of the manifest; it counts where there is a tag as well."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError where it is no name of an image."""
        host, _, rest = text.partition("/")
        if not rest or not ({".", ":"} & set(host) or host == "localhost"):
            host, rest = DOCKER_HUB, text if "/" in text else f"library/{text}"
        found = NAME.match(rest)
        if found is None:
            raise ConfigError(
                f"{text!r} is no name of an image: expected registry/name:tag",
                hint="for example registry.example.org/medflow-serving:1a2b3c4",
            )
        return cls(host, found["path"], found["tag"], found["digest"])

    @property
    def reference(self) -> str:
        """What the registry's API calls this image."""
        return self.digest or self.tag or "latest"

    @property
    def repository(self) -> str:
        """Without tag and digest."""
        return f"{self.host}/{self.path}"

    def at(self, *, tag: str | None = None, digest: str | None = None) -> ImageName:
        """Another image of the same repository."""
        return replace(self, tag=tag, digest=digest)

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine: plain HTTP does there, as Docker does it."""
    name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

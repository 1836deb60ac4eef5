"""The Hugging Face hub: what of it lies on this machine, and whether it can be reached. No torch.

A machine without a network is told so within seconds: the hub is asked once whether it is there before its own
client, which retries for 23 s where a name cannot be resolved and longer behind a silent firewall.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

SECONDS: Final = 5.0


def cached(repository: str, file: str, *, revision: str | None = None) -> Path | None:
    """A file of the hub that was fetched before, or None. ``revision`` None is the newest that this machine saw."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError:  # no name of the hub's
        return None
    return Path(found) if isinstance(found, str) else None


def answers() -> bool:
    """Whether the hub may be asked, and anything at all, a proxy's refusal aside, answers within ``SECONDS``."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def fetch(repository: str, file: str, *, revision: str | None = None) -> Path:
    """A file of the hub, from this machine where it was fetched before. Raises OSError where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return cached(repository, file, revision=revision) or Path(
            hf_hub_download(repository, file, revision=revision, etag_timeout=SECONDS)
        )
    except (HfHubHTTPError, ValueError) as error:
        raise OSError(str(error).splitlines()[0]) from error

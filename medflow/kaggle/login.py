"""Credentials as kagglehub finds them; what they are is handed to the client alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kagglehub.config import KaggleApiCredentials, get_kaggle_credentials
from kagglesdk.kaggle_env import get_access_token_from_env

from medflow.errors import CredentialsError

WAYS = (
    "set KAGGLE_API_TOKEN (made at https://www.kaggle.com/settings), or KAGGLE_USERNAME and KAGGLE_KEY, "
    "or put the token into ~/.kaggle/access_token, or kaggle.json into ~/.kaggle"
)


@dataclass(frozen=True)
class Credentials:
    """That there are credentials, and where. Never what they are."""

    where: str


def credentials() -> Credentials | None:
    """Where the credentials come from that kagglehub would use, in its own order; None for anonymous.

    Raises CredentialsError where something is there that cannot be credentials.
    """
    return None if secret() is None else Credentials(where=_where())


def _where() -> str:
    _, name = get_access_token_from_env()
    if name == "KAGGLE_API_TOKEN":
        return name
    if name is not None:
        return "~/.kaggle/access_token" if name == "access_token" else name
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return "KAGGLE_USERNAME and KAGGLE_KEY"
    return "kaggle.json in KAGGLE_CONFIG_DIR" if "KAGGLE_CONFIG_DIR" in os.environ else "~/.kaggle/kaggle.json"


def secret() -> KaggleApiCredentials | None:
    """The credentials themselves, for the client and nobody else."""
    try:
        found = get_kaggle_credentials()
    except (ValueError, TypeError, OSError):
        # Not quoted: the text of some of these errors holds the token itself.
        raise CredentialsError(
            "the Kaggle credentials that were found cannot be read: expected a token in KAGGLE_API_TOKEN or "
            "~/.kaggle/access_token, or a kaggle.json with `username` and `key`",
            hint=WAYS,
        ) from None
    if found is None:
        return None
    # A secret that went through a file or a Kubernetes secret often ends with a newline.
    values = [
        value.strip() if isinstance(value, str) else value for value in (found.username, found.key, found.api_key)
    ]
    if not all(value is None or _can_be_sent(value) for value in values):
        raise CredentialsError(
            f"the Kaggle credentials of {_where()} are empty or hold what no token or key has", hint=WAYS
        )
    return KaggleApiCredentials(*values)


def _can_be_sent(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()

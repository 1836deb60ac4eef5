"""The API key on which the token of a schedule's runs hangs.

ZenML makes a token that never expires from the credentials of whoever makes the schedule. With a person's password it
could do everything that the person can. So a schedule is made with the API key of a service account alone, whose
token ends when the key is deleted, deactivated or rotated; that is looked up by the key's id, by anybody.
"""

from __future__ import annotations

import os
from uuid import UUID

from zenml.client import Client
from zenml.models import APIKey

from medflow.errors import PlatformError
from medflow.platform.scheduling.records import Key

VARIABLE = "ZENML_STORE_API_KEY"
NEVER = "never"


def ours() -> str:
    """The key of this process as ``account/key/last rotation``. Raises PlatformError where it signs in otherwise."""
    value = os.environ.get(VARIABLE)
    if not value:
        raise PlatformError(
            "a schedule's runs need the API key of a service account; you sign in with a name and a password",
            hint=f"`zenml service-account create schedules` makes one; then export {VARIABLE}=..., its key",
        )
    try:
        key = str(APIKey.decode_api_key(value).id)
    except ValueError as error:
        raise PlatformError(f"{VARIABLE} holds no API key", hint="copy it again, ZENKEY_ and all") from error
    account = str(Client().active_user.id)
    return "/".join((account, key, _rotation(account, key)))


def state_of(credential: str) -> Key:
    """What has become of a key that ``ours`` named."""
    account, key, rotation = credential.split("/")
    client = Client()
    try:
        if not client.get_service_account(account, allow_name_prefix_match=False).active:
            return Key.INACTIVE
        found = client.zen_store.get_api_key(UUID(account), key)
    except KeyError:
        return Key.GONE
    if not found.active:
        return Key.INACTIVE
    return Key.VALID if _told(found.last_rotated) == rotation else Key.ROTATED


def _rotation(account: str, key: str) -> str:
    return _told(Client().zen_store.get_api_key(UUID(account), key).last_rotated)


def _told(moment: object) -> str:
    return NEVER if moment is None else str(moment).replace(" ", "T")

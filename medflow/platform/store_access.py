"""The artifact store's credentials, for sources, and files that models start from, that lie in a bucket too.

Apart from ``context``, so that only the steps that read these reach S3's client.
"""

from __future__ import annotations

from typing import Any

from medflow.platform import stack
from medflow.s3 import AMBIENT, Access


def of_store() -> Access:
    """Access to the active stack's object store; where its store is another, what AWS's own tools would find."""
    store: Any = stack.client().active_stack.artifact_store
    if store.flavor != "s3":
        return AMBIENT
    key, secret, token, region = store.get_credentials()
    settings = store.config.client_kwargs or {}
    return Access(
        key=key,
        secret=secret,
        token=token,
        endpoint=settings.get("endpoint_url"),
        region=region or settings.get("region_name"),
    )

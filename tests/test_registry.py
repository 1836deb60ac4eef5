"""Versions of models on record in a real ZenML store."""

from __future__ import annotations

import pytest
from zenml.exceptions import EntityExistsError

from medflow.platform import registry, stack
from medflow.records import PackageFacts


def facts_of(content_digest: str) -> PackageFacts:
    return PackageFacts(
        tag="digits:1", file="digits.bento", content_digest=content_digest, bundle_digest="b", bytes=1, bento_sha256=""
    )


@pytest.mark.parametrize("digest", ["628415903377" + "ab" * 26, "12345678e901" + "00" * 26, "ab" * 32])
def test_a_version_of_any_content_is_made_once(digest: str) -> None:
    """Of 280 contents one begins with digits alone, which ZenML takes for a number and refuses as a name."""
    stack.use_local()
    made = registry.ensure_version("digits", facts_of(digest))
    assert digest[: registry.DIGITS] in made.name and not made.name.isdecimal()
    assert registry.ensure_version("digits", facts_of(digest)).id == made.id
    with pytest.raises(EntityExistsError):
        stack.client().create_model_version("digits", name=made.name)

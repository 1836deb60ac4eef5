"""Fetch the bundle in production, unless it is the candidate itself. Never cached, and cheap."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.records import Challenge, Incumbent, Package


@step(enable_cache=False)
def incumbent(challenge: Challenge, package: Package) -> Annotated[Incumbent, "incumbent"]:
    from medflow.platform import context, registry

    return registry.incumbent(challenge, package.facts, context.work_folder())

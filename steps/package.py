"""The chosen bundle as a Bento."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from medflow.records import Bundle, Evaluation, Package


@step
def package(bundle: Bundle, evaluation: Evaluation) -> Annotated[Package, "package"]:
    from medflow import package as packaging
    from medflow.platform import context

    return packaging.package(bundle, evaluation, work=context.work_folder())

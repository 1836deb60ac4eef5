"""Go to the place that a verb is meant for: set the environment of this process before ZenML is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from medflow.errors import PlatformError
from medflow.home import home

if TYPE_CHECKING:
    from medflow.config.sections.place import PlaceConfig
    from medflow.config.sections.stack import StackConfig

LOCAL = "local"
CREDENTIALS = ("ZENML_STORE_API_KEY", "ZENML_STORE_USERNAME", "ZENML_STORE_API_TOKEN")


def go(name: str) -> tuple[PlaceConfig, StackConfig] | None:
    """Use a place's ZenML server and stack in this process; None for this machine, where nothing is set."""
    if name == LOCAL:
        os.environ["MEDFLOW_ON"] = LOCAL
        return None
    from medflow.config.destinations import read_place, read_stack

    place = read_place(name)
    stack = read_stack(place.stack)
    enter(place.stack, stack, on=name)
    return place, stack


def enter(name: str, stack: StackConfig, *, on: str) -> None:
    """Point ZenML at a stack's server; its client keeps a state of its own, in MEDFLOW_HOME/zenml-NAME."""
    if not any(os.environ.get(variable) for variable in CREDENTIALS):
        raise PlatformError(
            f"there are no credentials for the ZenML server at {stack.server}",
            hint="export ZENML_STORE_API_KEY=..., the key of a service account",
        )
    state = home() / f"zenml-{stack_name(name)}"
    os.environ |= {
        "MEDFLOW_ON": on,
        "MEDFLOW_STACK": stack_name(name),
        "ZENML_STORE_URL": stack.server,
        "ZENML_CONFIG_PATH": str(state / "config"),
        "ZENML_LOCAL_STORES_PATH": str(state / "stores"),
    }


def stack_name(name: str) -> str:
    """The name under which a stack is registered: that of its YAML."""
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")

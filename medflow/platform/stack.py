"""The local stack: it registers itself, idempotently, in medflow's own ZenML store.

Orchestrator and artifact store are ZenML's local ones; the MLflow tracker and registry keep their data
in SQLite beside them. The stack is made active for this process only (``ZENML_ACTIVE_STACK_ID``), so a
user's own active stack is left alone.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from medflow.errors import PlatformError
from medflow.home import home
from medflow.imports import ROOT

if TYPE_CHECKING:
    from zenml.client import Client
    from zenml.models import StackResponse

STACK = "medflow_local"
STORE = "medflow_artifacts"
TRACKER = "medflow_mlflow"
REGISTRY = "medflow_registry"
#: Integrations that are activated; the list is constant, since it decides materializers and so cache keys.
INTEGRATIONS = ("numpy", "pandas", "pillow")


def mlflow_folder() -> Path:
    return home() / "mlflow"


def mlflow_uri() -> str:
    return f"sqlite:///{mlflow_folder() / 'mlflow.db'}"


#: Names the place a process runs at; where it is not `local`, the stack is given by who started the process.
PLACE_VARIABLE = "MEDFLOW_ON"
#: A registered stack that a process on the user's machine uses instead of the local one; pods have none.
STACK_VARIABLE = "MEDFLOW_STACK"


def client() -> Client:
    """A ZenML client on the stack of this process."""
    from zenml.client import Client

    if os.environ.get(PLACE_VARIABLE, "local") == "local":
        use_local()
    elif name := os.environ.get(STACK_VARIABLE):
        use_registered(name)
    return Client()


def use() -> None:
    """Use the stack of this process: the local one, or that of the place which was asked for."""
    client()


def unregistered_client() -> Client:
    """A ZenML client that needs no stack yet, to register one."""
    from zenml.client import Client

    _quiet_console()
    limit_integrations()
    return Client()


@cache
def use_registered(name: str) -> None:
    """Use a stack that `medflow stack apply` registered at a ZenML server. Raises PlatformError where there is none."""
    from zenml.client import Client

    _quiet_console()
    limit_integrations()
    _take_modules_from_here()
    try:
        found = Client().get_stack(name, allow_name_prefix_match=False)
    except KeyError as error:
        raise PlatformError(
            f"the ZenML server knows no stack {name!r}", hint=f"`medflow stack apply {name}` registers it"
        ) from error
    os.environ["ZENML_ACTIVE_STACK_ID"] = str(found.id)


@cache
def use_local() -> None:
    """Register what is missing of the local stack and use it in this process."""
    _quiet_console()
    limit_integrations()
    from zenml.client import Client

    _take_modules_from_here()
    mlflow_folder().mkdir(parents=True, exist_ok=True)
    os.environ["ZENML_ACTIVE_STACK_ID"] = str(_stack(Client()).id)


def _take_modules_from_here() -> None:
    from zenml.utils import source_utils

    # ZenML would take the folder of the program that was started, or of a ZenML repository around the working folder,
    # and import our modules from there a second time, under other names.
    source_utils.set_custom_source_root(str(ROOT))


def _stack(client: Client) -> StackResponse:
    from zenml.enums import StackComponentType

    wanted = {
        StackComponentType.ORCHESTRATOR: "default",
        StackComponentType.ARTIFACT_STORE: _component(
            client, STORE, StackComponentType.ARTIFACT_STORE, "local", {"path": str(_artifacts())}
        ),
        StackComponentType.EXPERIMENT_TRACKER: _component(
            client, TRACKER, StackComponentType.EXPERIMENT_TRACKER, "mlflow", {"tracking_uri": mlflow_uri()}
        ),
        StackComponentType.MODEL_REGISTRY: _component(
            client, REGISTRY, StackComponentType.MODEL_REGISTRY, "mlflow", {}
        ),
    }
    try:
        stack = client.get_stack(STACK, allow_name_prefix_match=False)
    except KeyError:
        return client.create_stack(STACK, components=wanted)
    current = {kind: parts[0].name for kind, parts in stack.components.items()}
    if current == wanted:
        return stack
    return client.update_stack(STACK, component_updates={kind: [name] for kind, name in wanted.items()})


def _artifacts() -> Path:
    from zenml.config.global_config import GlobalConfiguration

    # ZenML accepts a local artifact store only below its own folder of local stores.
    folder = Path(GlobalConfiguration().local_stores_path) / "medflow_artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _component(client: Client, name: str, kind, flavor: str, settings: dict[str, str]) -> str:
    try:
        found = client.get_stack_component(kind, name, allow_name_prefix_match=False)
    except KeyError:
        client.create_stack_component(name=name, flavor=flavor, component_type=kind, configuration=settings)
        return name
    if any(found.configuration.get(key) != value for key, value in settings.items()):
        client.update_stack_component(name, kind, configuration=settings)
    return name


def limit_integrations() -> None:
    """Keep ZenML from importing torch, scikit-learn and others at every start, which doubles it."""
    from zenml.integrations.registry import integration_registry

    for name, integration in integration_registry.integrations.items():
        if name not in INTEGRATIONS:
            integration.activate = classmethod(lambda cls: None)  # type: ignore


def _quiet_console() -> None:
    """Leave standard output to results and errors to medflow's one line.

    ZenML prints warnings, and every failure with its traceback, on standard output; it keeps all of it in the
    run's stored logs too, which stay as they are.
    """
    import logging

    from zenml.logger import ZenMLConsoleHandler

    for handler in logging.getLogger().handlers:
        if isinstance(handler, ZenMLConsoleHandler):
            handler.setLevel(logging.CRITICAL)
    logging.getLogger("mlflow").setLevel(logging.WARNING)

"""Register a stack at a ZenML server, change what differs, and take it away again.

The credentials of the object store go into a secret of the server, which the component refers to by name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from zenml.enums import StackComponentType as Kind

from medflow.config.sections.stack import StackConfig, StoreConfig
from medflow.errors import ConfigError
from medflow.records import Record

if TYPE_CHECKING:
    from zenml.client import Client

Outcome = Literal["created", "updated", "unchanged", "deleted"]


class Applied(Record):
    """What became of one part of a stack."""

    part: str
    name: str
    outcome: Outcome


def apply(client: Client, name: str, stack: StackConfig, environment: Mapping[str, str] = os.environ) -> list[Applied]:
    """Create what is missing and change what differs; a second call changes nothing. Raises ConfigError."""
    done = [_apply_secret(client, name, credentials(stack, environment))]
    parts = components(name, stack)
    names = part_names(name, stack)
    for kind, (flavor, settings) in parts.items():
        done.append(_apply_component(client, kind, names[kind], flavor, settings))
    done.append(_apply_stack(client, name, names))
    return done


def differing(client: Client, name: str, stack: StackConfig, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The parts of a stack that are missing at the server, or not as the YAML and the credentials here say."""
    parts = components(name, stack)
    found = {kind: _component(client, kind, part) for kind, part in part_names(name, stack).items()}
    names = [
        kind.value
        for kind, (_, wanted) in parts.items()
        if found[kind] is None or any(found[kind].configuration.get(key) != value for key, value in wanted.items())
    ]
    secret = _secret(client, name)
    if secret is None or _are_others(secret.secret_values, stack, environment):
        names.append("secret")
    there = _stack(client, name)
    # All parts may be there and the stack still have others: those of a store that it had in between.
    if there is None or _names_of(there) != part_names(name, stack):
        names.append("stack")
    return names


def delete(client: Client, name: str) -> list[Applied]:
    """Remove the stack, its components and its secret; what is not there is passed over. Runs and artifacts stay."""
    done = []
    if _stack(client, name) is not None:
        client.delete_stack(name)
        done.append(Applied(part="stack", name=name, outcome="deleted"))
    for kind in KINDS:
        for part in _parts(client, name, kind):
            client.delete_stack_component(part, kind)
            done.append(Applied(part=kind.value, name=part, outcome="deleted"))
    if _secret(client, name) is not None:
        client.delete_secret(secret_name(name))
        done.append(Applied(part="secret", name=secret_name(name), outcome="deleted"))
    return done


def components(name: str, stack: StackConfig) -> dict[Kind, tuple[str, dict[str, Any]]]:
    """Flavor and configuration of every component."""
    cluster = stack.cluster
    return {
        Kind.ORCHESTRATOR: (
            "kubernetes",
            {
                # Both: outside a cluster the client falls back to the context, inside a pod its account is used.
                "kubernetes_context": cluster.context,
                "incluster": True,
                "kubernetes_namespace": cluster.namespace,
                "service_account_name": cluster.orchestrator_account,
                "step_pod_service_account_name": cluster.step_account,
                "pass_zenml_token_as_secret": True,
            },
        ),
        Kind.ARTIFACT_STORE: ("s3", _store(name, stack.store)),
        Kind.CONTAINER_REGISTRY: ("default", {"uri": stack.registry}),
        # ZenML asks for one, though nothing is built.
        Kind.IMAGE_BUILDER: ("local", {}),
        Kind.EXPERIMENT_TRACKER: (
            "mlflow",
            {"tracking_uri": stack.mlflow.uri, "tracking_token": _reference(name, "mlflow_token")},
        ),
        Kind.MODEL_REGISTRY: ("mlflow", {}),
    }


KINDS = (
    Kind.ORCHESTRATOR,
    Kind.ARTIFACT_STORE,
    Kind.CONTAINER_REGISTRY,
    Kind.IMAGE_BUILDER,
    Kind.MODEL_REGISTRY,
    Kind.EXPERIMENT_TRACKER,
)


def part_names(name: str, stack: StackConfig) -> dict[Kind, str]:
    """The component's name by kind.

    A store at another URI is another component: artifacts refer to theirs, and one that changed its URI would no longer
    find them. An endpoint may change, as a server's name does.
    """
    names = {kind: f"{name}_{kind.value}" for kind in KINDS}
    address = hashlib.sha256(stack.store.uri.encode()).hexdigest()[:8]
    return names | {Kind.ARTIFACT_STORE: f"{names[Kind.ARTIFACT_STORE]}_{address}"}


def _parts(client: Client, name: str, kind: Kind) -> list[str]:
    """Names of a stack's components of a kind: all stores that it ever had, one of everything else."""
    own = f"{name}_{kind.value}"
    page = client.list_stack_components(type=kind.value, name=f"startswith:{own}", size=1000)
    return [item.name for item in page.items if re.fullmatch(rf"{re.escape(own)}(_[0-9a-f]{{8}})?", item.name)]


def secret_name(name: str) -> str:
    return f"{name}_credentials"


def credentials(stack: StackConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Those of the object store and of MLflow, from the variables that the stack names. Raises ConfigError."""
    variables = {"key": stack.store.key_variable, "secret": stack.store.secret_variable}
    if stack.mlflow.token_variable:
        variables["mlflow_token"] = stack.mlflow.token_variable
    absent = [variable for variable in variables.values() if not environment.get(variable)]
    if absent:
        raise ConfigError(
            f"the stack's credentials: expected the environment variable {absent[0]}, which is not set",
            hint=f"export {absent[0]}=..., or name another variable in the stack's YAML",
        )
    # ZenML insists on a token for every remote MLflow; a server that asks for none passes it over.
    return {"mlflow_token": "none", **{part: environment[variable] for part, variable in variables.items()}}


def _are_others(kept: Mapping[str, str], stack: StackConfig, environment: Mapping[str, str]) -> bool:
    """Whether the credentials of this machine, where it has any, are not those that pods get."""
    try:
        return dict(kept) != credentials(stack, environment)
    except ConfigError:
        return False


def _reference(name: str, part: str) -> str:
    """How ZenML writes a value of a secret."""
    return f"{{{{{secret_name(name)}.{part}}}}}"


def _store(name: str, store: StoreConfig) -> dict[str, Any]:
    server = {"region_name": store.region} | ({"endpoint_url": store.endpoint} if store.endpoint else {})
    return {
        "path": store.uri,
        "key": _reference(name, "key"),
        "secret": _reference(name, "secret"),
        "client_kwargs": server,
    }


def _apply_secret(client: Client, name: str, values: dict[str, str]) -> Applied:
    found = _secret(client, name)
    outcome: Outcome = "unchanged"
    if found is None:
        client.create_secret(secret_name(name), values)
        outcome = "created"
    elif found.secret_values != values:
        client.update_secret(found.id, add_or_update_values=values)
        outcome = "updated"
    return Applied(part="secret", name=secret_name(name), outcome=outcome)


def _secret(client: Client, name: str) -> Any:
    return _found(lambda: client.get_secret(secret_name(name), allow_partial_name_match=False))


def _component(client: Client, kind: Kind, name: str) -> Any:
    return _found(lambda: client.get_stack_component(kind, name, allow_name_prefix_match=False))


def _apply_component(client: Client, kind: Kind, name: str, flavor: str, settings: dict[str, Any]) -> Applied:
    found = _component(client, kind, name)
    outcome: Outcome = "unchanged"
    if found is None:
        client.create_stack_component(name=name, flavor=flavor, component_type=kind, configuration=settings)
        outcome = "created"
    elif any(found.configuration.get(key) != value for key, value in settings.items()):
        client.update_stack_component(name, kind, configuration=settings)
        outcome = "updated"
    return Applied(part=kind.value, name=name, outcome=outcome)


def _apply_stack(client: Client, name: str, parts: Mapping[Kind, str]) -> Applied:
    found = _stack(client, name)
    outcome: Outcome = "unchanged"
    if found is None:
        client.create_stack(name, components=dict(parts))
        outcome = "created"
    elif _names_of(found) != parts:
        client.update_stack(name, component_updates={kind: [part] for kind, part in parts.items()})
        outcome = "updated"
    return Applied(part="stack", name=name, outcome=outcome)


def _stack(client: Client, name: str) -> Any:
    return _found(lambda: client.get_stack(name, allow_name_prefix_match=False))


def _names_of(stack: Any) -> dict[Kind, str]:
    """The component's name by kind, of a stack at the server."""
    return {kind: items[0].name for kind, items in stack.components.items()}


def _found(ask: Any) -> Any:
    try:
        return ask()
    except KeyError:
        return None

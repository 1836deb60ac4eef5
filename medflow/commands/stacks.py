"""Verbs about the stack of a cluster: register it, look whether everything is in place, take it away."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from medflow.commands import output
from medflow.commands.place import enter, stack_name
from medflow.commands.verb import JsonOption, Verb
from medflow.config.sections.stack import StackConfig
from medflow.errors import PlatformError

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Register, check and delete the stack of a cluster."
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A stack of infra/stacks, or the path of a YAML.")]


@app.command("apply", cls=Verb)
def apply(name: Name, as_json: JsonOption = False) -> None:
    """Register a stack at its ZenML server.

    What is there already is changed where it differs; a second call changes nothing.

    \b
    Examples:
      medflow stack apply kubernetes
      medflow stack apply mine.yaml --json | jq '.[].outcome'
    """
    stack = _enter(name)
    from medflow.platform.kubernetes import registration
    from medflow.platform.stack import unregistered_client

    done = registration.apply(unregistered_client(), stack_name(name), stack)
    _tell(done, as_json)
    if not as_json and all(item.outcome == "unchanged" for item in done):
        output.emit(f"\n{stack_name(name)} is as it was: nothing to change")


@app.command("check", cls=Verb)
def check(
    name: Name,
    on: Annotated[str, typer.Option(metavar="PLACE", help="Whose steps must fit: in configs/on.")] = "kubernetes",
    as_json: JsonOption = False,
) -> None:
    """Look whether a cluster has what a run needs.

    Server, store, namespace, accounts, rights, nodes, taints, GPUs, quotas, shared memory, Kubeflow Trainer where nodes
    are asked for, secrets, image; and from inside a pod: server, store, MLflow. Exit code 0 where nothing is amiss.

    \b
    Examples:
      medflow stack check kubernetes
      medflow stack check kubernetes --json | jq '.[] | select(.ok | not)'
    """
    from medflow.config.destinations import read_place

    place, stack = read_place(on), _enter(name)
    from medflow.platform.kubernetes import preflight

    found = preflight.check(stack_name(name), stack, place, os.environ)
    if as_json:
        output.emit_json([item.model_dump(mode="json") for item in found])
    else:
        output.emit_table(("", "check", "found"), [("ok" if i.ok else "amiss", i.check.value, i.found) for i in found])
        for item in found:
            if not item.ok:
                output.emit(f"{item.check.value}: {item.remedy}")
    amiss = [item.check.value for item in found if not item.ok]
    if amiss:
        raise PlatformError(f"amiss: {', '.join(dict.fromkeys(amiss))}", hint="what to do for each is said above")


@app.command("stop", cls=Verb)
def stop(
    name: Name, run: Annotated[str, typer.Argument(metavar="RUN", help="A run of `medflow runs`, by id or name.")]
) -> None:
    """Stop a run that goes on in a cluster, and remove its jobs, pods and token from there.

    What it has finished stays cached. Ctrl-C where the run was started does the same.

    \b
    Examples:
      medflow stack stop kubernetes 3f1c2a9e-6d54-4c11-9d0b-0a4f6e1f2b77
    """
    stack = _enter(name)
    from medflow.platform import reports
    from medflow.platform.kubernetes import cluster, ending, others

    found = reports.find_run(run)
    others.check_stack(found, stack_name(name), stack.cluster.namespace)
    with cluster.refusals_told():
        ending.stop(str(found.id), cluster.connect(stack.cluster.context, stack.cluster.namespace))
    was = found.status.value
    output.emit(f"{found.name} was {was} already" if found.status.is_finished else f"{found.name} is stopped")


@app.command("delete", cls=Verb)
def delete(name: Name, as_json: JsonOption = False) -> None:
    """Take a stack, its components and its secret away from the ZenML server.

    Runs, artifacts and models stay.

    \b
    Examples:
      medflow stack delete kubernetes
    """
    _enter(name)
    from medflow.platform.kubernetes import registration
    from medflow.platform.kubernetes.scheduling import observing
    from medflow.platform.stack import unregistered_client

    client = unregistered_client()
    scheduled = [item.name for item in observing.registered(stack_name(name))]
    if scheduled:
        raise PlatformError(
            f"schedules run on this stack: {', '.join(scheduled)}",
            hint="take them out of their file, and `medflow schedule apply` it first",
        )
    _tell(registration.delete(client, stack_name(name)), as_json)


def _enter(name: str) -> StackConfig:
    from medflow.config.destinations import read_stack

    stack = read_stack(name)
    enter(name, stack, on=stack_name(name))
    return stack


def _tell(done, as_json: bool) -> None:
    if as_json:
        output.emit_json([item.model_dump(mode="json") for item in done])
    elif done:
        output.emit_table(("part", "name", "outcome"), [(item.part, item.name, item.outcome) for item in done])
    else:
        output.emit("nothing was there")

"""Verbs about this machine: dashboards, stored artifacts, and whether everything is in place."""

from __future__ import annotations

from contextlib import redirect_stdout
from typing import Annotated

import typer

from medflow.commands import output
from medflow.commands.place import LOCAL, go
from medflow.commands.verb import At, JsonOption
from medflow.errors import ArtifactError, PlatformError


def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    zenml_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the ZenML dashboard.")] = 8237,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the MLflow UI.")] = 5000,
) -> None:
    """Start the ZenML dashboard and the MLflow UI.

    Prints both addresses, and stops both on Ctrl-C.

    \b
    Examples:
      medflow dashboard
      medflow dashboard --zenml-port 8300 --mlflow-port 5001
    """
    from medflow.platform import dashboard as platform

    with redirect_stdout(output.stream()):  # the addresses are this verb's result
        platform.serve(host, zenml_port, mlflow_port)


def verify(on: At = LOCAL, as_json: JsonOption = False) -> None:
    """Compare every stored artifact with what was written.

    Exit code 0 where all are whole. A damaged one is made again by the next run of its step.

    \b
    Examples:
      medflow verify
      medflow verify --json | jq .damaged
    """
    go(on)
    from medflow.platform import verify as platform

    found = platform.verify()
    if as_json:
        output.emit_json(found.model_dump(mode="json"))
    else:
        output.emit(f"{found.artifacts} artifacts, {found.bytes / 1e6:,.1f} MB read, {len(found.damaged)} damaged")
        if found.damaged:
            rows = [(item.artifact, item.version, item.step, item.problem, item.uri) for item in found.damaged]
            output.emit_table(("artifact", "version", "step", "problem", "where"), rows)
    if found.damaged:
        raise ArtifactError(
            f"{len(found.damaged)} of {found.artifacts} artifacts are damaged",
            hint="run the dataset again: damaged artifacts are never reused, their steps run anew",
        )


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine, and say what to do for each thing amiss.

    Python, packages, GPU, disk, memory, Kaggle credentials, ports, state folder, uv.

    Exit code 0 where everything that a run needs is in place.

    \b
    Examples:
      medflow doctor
      medflow doctor --json | jq '.[] | select(.ok | not)'
    """
    from medflow.doctor import examine

    found = examine()
    if as_json:
        output.emit_json([item.model_dump(mode="json") for item in found])
    else:
        words = {(True, True): "ok", (True, False): "ok", (False, True): "amiss", (False, False): "note"}
        output.emit_table(
            ("", "check", "found"), [(words[item.ok, item.needed], item.check, item.found) for item in found]
        )
        for item in found:
            if item.remedy and not item.ok:
                output.emit(f"{item.check}: {item.remedy}")
    amiss = [item.check for item in found if item.needed and not item.ok]
    if amiss:
        raise PlatformError(f"amiss: {', '.join(amiss)}", hint="what to do for each is said above")

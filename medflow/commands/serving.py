"""Verbs about models in service in a cluster: bring one there, put the one before back, take it away, list them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medflow.commands import output
from medflow.commands.place import LOCAL, go
from medflow.commands.verb import JsonOption, Model, On
from medflow.errors import ConfigError

if TYPE_CHECKING:
    from medflow.config.sections.place import PlaceConfig
    from medflow.config.sections.stack import StackConfig
    from medflow.platform.kubernetes.deploying import Deployed, Target
    from medflow.platform.kubernetes.serving_objects import Release

STAGES = ("production", "staging")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name, which is its dataset's.")]


def deploy(
    model: Model,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Its version in this stage; production where none is said.", show_default=False
        ),
    ] = None,
    on: On = "kubernetes",
    origin: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PLACE", help="Where the model is on record, `local` or a place; else where it goes."
        ),
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="Put back what served before: its image, with its settings.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be applied, as YAML, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a promoted model in a cluster, without a request lost on the way.

    Its Bento becomes an image on the serving image; Deployment, Service, autoscaler and policies are applied, new pods
    take over once they are ready. Where they do not get ready, what served before goes on.
    How many pods, how large, and who may ask them: `serving` in the place's YAML.

    \b
    Examples:
      medflow deploy phantom --stage production
      medflow deploy covid_radiography@3 --from local
      medflow deploy phantom --previous
      medflow deploy phantom --dry-run
    """
    place, stack = _place(on)
    if previous:
        _put_back(model, stage, stack, dry_run, as_json)
        return
    reference = _reference(model, stage)
    go(on if origin is None else origin)
    from medflow.platform.kubernetes import deploying

    with tempfile.TemporaryDirectory(prefix="medflow-deploy-") as scratch:
        prepared, release = _prepared(reference, place, stack, Path(scratch))
        if dry_run:
            _print(release, stack, as_json)
            return
        prepared.push()
    _tell(deploying.deploy(_target(stack), release), as_json)


def undeploy(name: Name, on: On = "kubernetes", as_json: JsonOption = False) -> None:
    """Take a model out of service: its pods, and everything that `medflow deploy` made for them.

    Its images stay in the registry.

    \b
    Examples:
      medflow undeploy phantom
    """
    _, stack = _place(on)
    from medflow.platform.kubernetes import deploying

    deploying.undeploy(_target(stack), name)
    if as_json:
        output.emit_json({"model": name, "namespace": stack.cluster.namespace})
    else:
        output.emit(f"{name} is out of service")


def deployments(on: On = "kubernetes", as_json: JsonOption = False) -> None:
    """List the models in service in a cluster: version, image, pods, address, what served before.

    \b
    Examples:
      medflow deployments
      medflow deployments --json | jq -r '.[].image'
    """
    _, stack = _place(on)
    from medflow.platform.kubernetes import deploying

    found = deploying.deployments(_target(stack))
    if as_json:
        output.emit_json([item.model_dump(mode="json") for item in found])
        return
    if not found:
        output.emit("no model is in service; `medflow deploy NAME` brings one there")
        return
    rows = [(i.model, i.state, f"{i.ready}/{i.replicas}", i.before, i.url, _short(i.image)) for i in found]
    output.emit_table(("model", "state", "pods", "before", "in the cluster", "image"), rows)


def _place(on: str) -> tuple[PlaceConfig, StackConfig]:
    from medflow.config.destinations import read_place, read_stack

    if on == LOCAL:
        raise ConfigError(
            "a model is deployed to a cluster, `local` is this machine",
            hint="--on kubernetes; `medflow serve` serves here",
        )
    place = read_place(on)
    return place, read_stack(place.stack)


def _reference(model: str, stage: str | None) -> str:
    """The version that is meant. Raises ConfigError where two are."""
    if "@" not in model and model not in STAGES:
        return f"{model}@{stage or STAGES[0]}"
    if stage is not None:
        raise ConfigError(f"{model!r} says which version, and so does --stage", hint="leave one of them out")
    return model


def _target(stack: StackConfig) -> Target:
    from medflow.platform.kubernetes import cluster, deploying

    return deploying.target(cluster.connect(stack.cluster.context, stack.cluster.namespace))


def _prepared(reference: str, place: PlaceConfig, stack: StackConfig, work: Path):
    """The image of a model on record, not pushed yet, and its release."""
    from medflow.platform import registry
    from medflow.platform.kubernetes.model_image import prepare_image
    from medflow.platform.kubernetes.serving_objects import Release, Served

    found = registry.find(reference)
    package = registry.package(f"{found.name}@{found.version}", work / "package")
    prepared = prepare_image(package, stack, work)
    served = Served(
        model=found.name,
        version=found.version,
        bento=package.facts.tag,
        package_digest=package.facts.content_digest,
        bundle_digest=package.facts.bundle_digest,
        image=str(prepared.name),
        base_digest=prepared.base_digest,
    )
    account, secrets = stack.cluster.serving_account, stack.cluster.pull_secrets
    return prepared, Release(served=served, settings=place.serving, account=account, pull_secrets=secrets)


def _put_back(model: str, stage: str | None, stack: StackConfig, dry_run: bool, as_json: bool) -> None:
    if "@" in model or stage is not None:
        raise ConfigError("--previous takes what served before, whatever its version", hint="name the model alone")
    from medflow.platform.kubernetes import deploying

    target = _target(stack)
    release = deploying.previous(target, model)
    if dry_run:
        _print(release, stack, as_json)
    else:
        _tell(deploying.deploy(target, release), as_json)


def _print(release: Release, stack: StackConfig, as_json: bool) -> None:
    import yaml

    from medflow.platform.kubernetes.serving_objects import rendered

    documents = rendered(release, stack.cluster.namespace, replicas=release.settings.replicas[0], before=None)
    if as_json:
        output.emit_json(documents)
    else:
        output.emit(yaml.safe_dump_all(documents, sort_keys=False).rstrip())


def _tell(deployed: Deployed, as_json: bool) -> None:
    if as_json:
        output.emit_json(deployed.model_dump(mode="json"))
        return
    name = deployed.model.partition("@")[0]
    service, port = deployed.url.removeprefix("http://").partition(".")[0], deployed.url.rpartition(":")[2]
    output.emit(f"{deployed.model} is in service, {deployed.ready} of {deployed.replicas} pods ready: {deployed.image}")
    output.emit(f"in the cluster: {deployed.url}")
    port = port if port.isdecimal() else "80"
    output.emit(f"from here: kubectl -n {deployed.namespace} port-forward service/{service} 3000:{port}")
    if deployed.before:
        output.emit(f"before: {deployed.before}; `medflow deploy {name} --previous` puts it back")


def _short(image: str) -> str:
    return image.partition("@")[0]

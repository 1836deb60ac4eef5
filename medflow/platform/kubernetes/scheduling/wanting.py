"""What the file asks of a cluster: each schedule's pipeline as its pods will run it, and the digests of all that."""

from __future__ import annotations

from typing import Any

from zenml.client import Client

from medflow import s3
from medflow.config.sections import SourceConfig
from medflow.config.sections.place import PlaceConfig
from medflow.config.sections.stack import StackConfig
from medflow.errors import ConfigError
from medflow.platform import runs
from medflow.platform.kubernetes import registration, running, settings
from medflow.platform.kubernetes.scheduled import ONLY_WHEN_CHANGED
from medflow.platform.scheduling.records import Entry, Frozen, Timing, Wanted
from medflow.platform.unchanged import LOOK
from medflow.records import digest_of


def wanted(entry: Entry, place: PlaceConfig, name: str, stack: StackConfig) -> Wanted:
    """One schedule of a file; ``name`` is the stack's. Raises ConfigError where no pod can see its source."""
    _check_source(entry)
    frozen = Frozen(image=stack.image, code=_code(entry), settings=_settings(entry, place, name, stack))
    return Wanted(name=entry.schedule.name, timing=Timing.of(entry.schedule), frozen=frozen)


def pipeline_of(entry: Entry, place: PlaceConfig, stack: StackConfig) -> Any:
    """The training of a schedule, with image, sizes, deadlines and retries of its pods."""
    configured = running.placed(_training(entry), _place(entry, place), stack)
    kept = {"orchestrator": {**settings.of_run(_place(entry, place), stack)["orchestrator"], **KEPT}}
    return configured.with_options(settings=kept, extra={ONLY_WHEN_CHANGED: entry.schedule.only_when_the_data_changed})


#: Jobs of a schedule stay until newer ones take their place, so that what failed in the night is told in the morning.
KEPT: dict[str, Any] = {"ttl_seconds_after_finished": None}


def _place(entry: Entry, place: PlaceConfig) -> PlaceConfig:
    """Where the orchestrator's pod looks at the source, it needs the credentials of the step that does."""
    if not entry.schedule.only_when_the_data_changed:
        return place
    secrets = dict.fromkeys((*place.orchestrator.secrets, *place.of_step(LOOK, LOOK).secrets))
    return place.model_copy(update={"orchestrator": place.orchestrator.model_copy(update={"secrets": tuple(secrets)})})


def _training(entry: Entry) -> Any:
    from pipelines.training import training

    return training(runs.settled(entry.config))


def _code(entry: Entry) -> str:
    pipeline = _training(entry)
    pipeline.prepare()
    uses = pipeline.invocations.items()
    return digest_of({use: invocation.step.configuration.environment for use, invocation in uses})


def _settings(entry: Entry, place: PlaceConfig, name: str, stack: StackConfig) -> str:
    """Of everything else that is sent to ZenML; the kubeconfig's context is each user's own."""
    pipeline = _training(entry)
    pipeline.prepare()
    uses = {use: str(invocation.step.name) for use, invocation in pipeline.invocations.items()}
    where = _place(entry, place)
    parts = {
        kind.value: {key: value for key, value in given.items() if key != "kubernetes_context"}
        for kind, (_, given) in registration.components(name, stack).items()
    }
    return digest_of(
        {
            "run": runs.settled(entry.config).model_dump(mode="json", by_alias=True),
            "only": entry.schedule.only_when_the_data_changed,
            "pods": [settings.of_run(where, stack), settings.of_steps(where, uses, stack)],
            "stack": [str(Client().active_stack_model.id), stack.server, parts],
        }
    )


def _check_source(entry: Entry) -> None:
    """A local folder could be sent once, and would never be looked at again."""
    source: SourceConfig = entry.config.source
    local = source.path if source.kind in ("folder", "zip") else source.metadata
    if local and not s3.Place.is_meant(local):
        raise ConfigError(
            f"schedule {entry.schedule.name}: expected a source that pods can look at again, found {local}",
            hint="give it as s3://BUCKET/PREFIX or kaggle, or run the schedule `on: local`",
        )

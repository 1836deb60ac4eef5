"""What the file asks of a cluster: each schedule's pipeline as its pods will run it, and the digests of all that."""

from __future__ import annotations

from typing import Any

from zenml.client import Client

from medflow import model_files, s3
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
    """One schedule of a file; ``name`` is the stack's. Raises ConfigError where no pod can see what it reads."""
    _check_files(entry, place)
    pipeline = _training(entry)
    pipeline.prepare()
    frozen = Frozen(
        image=stack.image,
        code=_code(pipeline),
        settings=_settings(entry, pipeline, _place(entry, place), name, stack),
    )
    return Wanted(name=entry.schedule.name, timing=Timing.of(entry.schedule), frozen=frozen)


def pipeline_of(entry: Entry, place: PlaceConfig, stack: StackConfig) -> Any:
    """The training of a schedule, with image, sizes, deadlines and retries of its pods."""
    place = _place(entry, place)
    given = {"orchestrator": {**settings.of_run(place, stack)["orchestrator"], **KEPT}}
    extra = {ONLY_WHEN_CHANGED: entry.schedule.only_when_the_data_changed}
    return running.placed(_training(entry), place, stack).with_options(settings=given, extra=extra)


#: Jobs of a schedule stay until newer ones take their place, so that what failed in the night is told in the morning.
KEPT: dict[str, Any] = {"ttl_seconds_after_finished": None}


def _training(entry: Entry) -> Any:
    from pipelines.training import training

    return training(runs.settled(entry.config))


def _place(entry: Entry, place: PlaceConfig) -> PlaceConfig:
    """Where the orchestrator's pod looks at the source, it needs credentials and volumes of the step that does."""
    if not entry.schedule.only_when_the_data_changed:
        return place
    looks = place.of_step(LOOK, LOOK)
    secrets = tuple(dict.fromkeys((*place.orchestrator.secrets, *looks.secrets)))
    given = place.orchestrator.model_copy(update={"secrets": secrets, "volumes": looks.volumes})
    return place.model_copy(update={"orchestrator": given})


def _code(pipeline: Any) -> str:
    """Of what each step's cache key holds of code and of files."""
    uses = pipeline.invocations.items()
    return digest_of({use: invocation.step.configuration.environment for use, invocation in uses})


def _settings(entry: Entry, pipeline: Any, place: PlaceConfig, name: str, stack: StackConfig) -> str:
    """Of everything else that is sent to ZenML; the kubeconfig's context is each user's own."""
    uses = {use: str(invocation.step.name) for use, invocation in pipeline.invocations.items()}
    parts = {
        kind.value: {key: value for key, value in given.items() if key != "kubernetes_context"}
        for kind, (_, given) in registration.components(name, stack).items()
    }
    return digest_of(
        {
            "run": runs.settled(entry.config).model_dump(mode="json", by_alias=True),
            "only": entry.schedule.only_when_the_data_changed,
            "pods": [settings.of_run(place, stack), KEPT, settings.of_steps(place, uses, stack)],
            "stack": [str(Client().active_stack_model.id), stack.server, parts],
        }
    )


def _check_files(entry: Entry, place: PlaceConfig) -> None:
    """What lies on this machine could be sent once, and would never be looked at again."""
    source, models = entry.config.source, entry.config.models
    folder = source.path if source.kind in ("folder", "zip") else None
    sources = [path for path in (folder, source.metadata) if path and not place.on_volume(path)]
    starts = [path for model in models for path in (model_files.weights_of(model), model_files.encoder_of(model))]
    for path in (*sources, *starts):
        if path and not s3.Place.is_meant(path):
            raise ConfigError(
                f"schedule {entry.schedule.name}: expected what pods can read again and again, found {path}",
                hint="give it as s3://BUCKET/KEY, a source also as kaggle or on a volume, or run the schedule "
                "`on: local`",
            )

"""Make a cluster and its ZenML server what a file of schedules says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal
from uuid import UUID

from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.models import ScheduleUpdate

from medflow.config.sections.place import PlaceConfig
from medflow.config.sections.stack import StackConfig
from medflow.platform import stack as stacks
from medflow.platform.kubernetes import cluster, running, transport
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.scheduling import credentials, marks, observing, wanting
from medflow.platform.scheduling import planning
from medflow.platform.scheduling.records import Action, Change, Entry, Fault, Key, Registered, Timing, Wanted
from medflow.records import Record

Outcome = Literal["created", "updated", "re-created", "deleted", "unchanged", "waits"]


class Applied(Record):
    """What became of one schedule."""

    name: str
    outcome: Outcome
    why: tuple[str, ...] = ()


class Scheduler:
    """The schedules of one stack."""

    def __init__(self, name: str, stack: StackConfig, entries: Sequence[tuple[Entry, PlaceConfig]]) -> None:
        stacks.use()
        self.name, self.stack = name, stack
        self.entries = {entry.schedule.name: (entry, place) for entry, place in entries}
        self.here: Cluster = cluster.connect(stack.cluster.context, stack.cluster.namespace)
        self.wanted = {item.name: item for item in (wanting.wanted(*entry, name, stack) for entry in entries)}
        with cluster.refusals_told():
            self.standing = {item.name: item for item in observing.standing(self.here, name)}
        self.registered = {item.name: item for item in observing.registered(name)}

    def changes(self) -> tuple[Change, ...]:
        """What is to be done."""
        return planning.changes(
            tuple(self.wanted.values()), tuple(self.standing.values()), tuple(self.registered.values())
        )

    def faults(self) -> tuple[Fault, ...]:
        """What went wrong so far."""
        return planning.faults(tuple(self.standing.values()), marks.now())

    def apply(self, say: Callable[[str], None]) -> tuple[Applied, ...]:
        """Do what is to be done. Raises PlatformError where a schedule would be made without an API key."""
        changes = self.changes()
        makes = any(change.action in (Action.CREATE, Action.RECREATE) for change in changes)
        key = credentials.ours() if makes else ""
        with cluster.refusals_told():
            return tuple(self._apply(change, key, say) for change in changes)

    def _apply(self, change: Change, key: str, say: Callable[[str], None]) -> Applied:
        name = change.name
        if change.action is not Action.NOTHING:
            say(f"{name}: {change.action.value}: {'; '.join(change.why)}")
        if run := self._would_end(change):
            why = f"{run} goes on with a token that this would end; it fires no more, apply again when it is over"
            return Applied(name=name, outcome="waits", why=(*change.why, why))
        match change.action:
            case Action.NOTHING:
                return Applied(name=name, outcome="unchanged")
            case Action.UPDATE:
                self._update(name)
                return Applied(name=name, outcome="updated", why=change.why)
            case Action.DELETE:
                self._remove(name)
                return Applied(name=name, outcome="deleted", why=change.why)
            case Action.RECREATE:
                self._remove(name)
                self._create(name, key)
                return Applied(name=name, outcome="re-created", why=change.why)
            case Action.CREATE:
                self._create(name, key)
                return Applied(name=name, outcome="created", why=change.why)

    def _would_end(self, change: Change) -> str | None:
        """What goes on and would lose its token: with its schedule deleted, or paused at the ZenML server.

        The schedule fires no more before this is looked at: a run may have begun since the plan was made, and another
        one could begin after the look.
        """
        stands = self.standing.get(change.name)
        pauses = change.action is Action.UPDATE and self.wanted[change.name].timing.paused
        ends = pauses or change.action in (Action.RECREATE, Action.DELETE)
        if stands is None or stands.key is not Key.VALID or not ends:
            return None
        self.here.patch_cron_job(stands.job, {"spec": {"suspend": True}})
        fires = observing.fires(self.here, self.here.cron_job(stands.job), self.here.events())
        # A pod that has just been started has no run yet; one that waits in vain holds nothing up.
        going = [fire for fire in fires if fire.ended is None and (fire.run_id or fire.reason is None)]
        return f"run {going[-1].run_id or going[-1].job}" if going else None

    def _create(self, name: str, key: str) -> None:
        wanted = self.wanted[name]
        # Each run of the pipeline is configured anew: ZenML adds the token to the settings that it is given.
        pipeline = wanting.pipeline_of(*self.entries[name], self.stack)
        schedule = Schedule(name=observing.registered_name(self.name, name), cron_expression=wanted.timing.cron)
        # ZenML gives no token for a schedule that is paused; its CronJob is from the start.
        with running.own_program(), transport.limited(), marks.marked(name, self._marks(wanted, key), wanted.timing):
            pipeline.with_options(schedule=schedule)()
        self._finish(name, wanted.timing)

    def _marks(self, wanted: Wanted, key: str) -> marks.Marks:
        return marks.Marks(stack=self.name, key=key, since=marks.now(), **wanted.frozen.model_dump())

    def _finish(self, name: str, timing: Timing) -> None:
        """Write on the CronJob what is known only now, and pause at the ZenML server what is paused."""
        known = next(item for item in observing.registered(self.name) if item.name == name)
        job = marks.cron_job_name(self.name, name)
        made = self.here.cron_job(job)
        later = {marks.TEMPLATE: marks.template_digest(made), marks.SCHEDULE_ID: known.id}
        self.here.patch_cron_job(job, {"metadata": {"annotations": later}})
        if timing.paused:
            _update_at_zenml(known, timing)

    def _update(self, name: str) -> None:
        timing, stands = self.wanted[name].timing, self.standing[name]
        body: dict[str, Any] = {"spec": marks.patch_of(timing)}
        if (timing.cron, timing.time_zone, timing.paused) != (
            stands.timing.cron, stands.timing.time_zone, stands.timing.paused,
        ):  # fmt: skip
            body["metadata"] = {"annotations": {marks.SINCE: marks.now().isoformat()}}
        self.here.patch_cron_job(stands.job, body)
        _update_at_zenml(self.registered[name], timing)

    def _remove(self, name: str) -> None:
        """CronJob, jobs and pods, schedule and the token's Secret; what is not there is passed over.

        The Secret goes first: where that fails, the others still tell the next apply which one it is.
        """
        stands = self.standing.get(name)
        if stands is not None:
            self.here.delete_secret(f"zenml-token-{stands.snapshot_id}")
        known = self.registered.get(name)
        if known is not None:
            for snapshot in _snapshots(known):
                self.here.delete_secret(f"zenml-token-{snapshot}")
        if stands is not None:
            self.here.delete_cron_job(stands.job)
        if known is not None:
            # Archived, so that past runs still tell which schedule they were of.
            Client().zen_store.delete_schedule(UUID(known.id), soft=True)


def _snapshots(known: Registered) -> list[str]:
    """What a schedule runs, asked of the server for the case that its CronJob is gone."""
    page = Client().list_snapshots(schedule_id=known.id, named_only=False, size=100)
    return [str(item.id) for item in page.items]


def _update_at_zenml(known: Registered, timing: Timing) -> None:
    Client().zen_store.update_schedule(
        UUID(known.id), ScheduleUpdate(cron_expression=timing.cron, active=not timing.paused)
    )

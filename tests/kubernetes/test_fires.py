"""Schedules that really fire: what they run, what starts beside them, what is told, and what is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clusters import BUCKET, RUNS
from commands import TRAIN
from scheduling import DATASET, SETTINGS, Schedules, entry, token_of

pytestmark = [pytest.mark.timeout(3600)]
UNCACHED = {"resolve", "incumbent", "promote", "record"}
OVER = ("completed", "failed", "stopped")
#: A node's label, without which a run's last step waits.
GO = "medflow-test/go"


@pytest.fixture(scope="module")
def source(schedules: Schedules) -> str:
    """The dataset's twin in the object store; other seeds give other images."""
    place = f"{schedules.medflow.store_folder}/images"
    put(schedules, twin(schedules, seed=0), place)
    return place


def twin(schedules: Schedules, seed: int) -> Path:
    folder = schedules.medflow.folder / f"twin-{seed}"
    words = ("phantom", DATASET, "--to", str(folder), "--images", "90", "--seed", str(seed))
    assert schedules.medflow.elsewhere("twins")(*words).returncode == 0
    return folder


def put(schedules: Schedules, folder: Path, place: str) -> None:
    store = schedules.medflow.cluster.store.client
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload_file(str(path), BUCKET, f"{place}/{path.relative_to(folder).as_posix()}")


@pytest.fixture(scope="module")
def held(schedules: Schedules) -> Iterator[Callable[[], None]]:
    """Runs wait with their last step until this is called: however fast they are, the first goes on while it must."""
    place, cluster = schedules.medflow.place, schedules.medflow.cluster
    place.write_text(f"{place.read_text()}  record: {{node_selector: {{{GO}: 'yes'}}}}\n")
    yield lambda: print(cluster.kubectl("label", "nodes", "--all", f"{GO}=yes"))
    cluster.kubectl("label", "nodes", "--all", f"{GO}-")


def minutely(source: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"cron": "* * * * *", "source": f"s3://{BUCKET}/{source}", "paused": False, **changes}
    return entry(**given)


def run_of(schedules: Schedules, name: str, after: int = 0, seconds: float = 300) -> str:
    """The run of a schedule's newest fire, as soon as one has reached ZenML beyond those that had before."""

    def newest() -> str | None:
        runs = [job["metadata"]["annotations"].get("zenml.io/run-id") for job in schedules.jobs(name)]
        return runs[-1] if len(runs) > after and runs[-1] else None

    return await_that(newest, seconds, f"no fire of {name} reached ZenML")


def ended(schedules: Schedules, run_id: str, seconds: float = 1800) -> dict[str, Any]:
    def finished() -> dict[str, Any] | None:
        run = schedules.zenml.run(run_id)
        return run if run["body"]["status"] in OVER else None

    return await_that(finished, seconds, f"run {run_id} did not end")


def await_that(ask: Callable[[], Any], seconds: float, otherwise: str) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := ask()) is not None:
            return found
        time.sleep(2)  # the pods have the same two cores
    raise AssertionError(otherwise)


def settle(schedules: Schedules) -> None:
    """Apply when no fire goes on any more: its job ends a moment after its run, and a new one may have begun."""
    until = time.monotonic() + 600
    while True:
        await_that(lambda: None if going_on(schedules) else True, 600, "a fire goes on")
        done = schedules.medflow("schedule", "apply", str(schedules.write()), "--json")
        if done.returncode == 0:
            return
        assert "because a run goes on" in done.stderr and time.monotonic() < until, done.stderr


def going_on(schedules: Schedules) -> bool:
    items = schedules.kube("get", "jobs", "-l", "medflow/schedule")["items"]
    return any(not conditions(item) & {"Complete", "Failed"} for item in items)


def conditions(job: dict[str, Any]) -> set[str]:
    return {item["type"] for item in job["status"].get("conditions", [])}


def suspend(schedules: Schedules, *names: str) -> None:
    """At once, and without the work of an apply on the cores of the runs; the next apply pauses or resumes."""
    for name in names:
        found = schedules.cron_job(name)["metadata"]["name"]
        schedules.medflow.cluster.kubectl("-n", RUNS, "patch", "cronjob", found, "-p", '{"spec": {"suspend": true}}')


def fire(schedules: Schedules, name: str) -> None:
    """At once, as the cluster does when it is time."""
    found = schedules.cron_job(name)["metadata"]["name"]
    schedules.medflow.cluster.kubectl("-n", RUNS, "create", "job", f"{found}-now", f"--from=cronjob/{found}")


def test_it_really_fires_and_no_second_run_starts_beside_it(
    schedules: Schedules, source: str, held: Callable[[], None]
) -> None:
    schedules.entries = {"minutely": minutely(source)}
    assert schedules.apply() == {"minutely": "created"}
    run_id = run_of(schedules, "minutely")
    await_that(lambda: is_time_to_tell(schedules), 240, "no fire was left out")
    told = [fault["text"] for fault in schedules.plan(9)["faults"]]
    assert any("left out because the run before went on" in text for text in told), told
    assert not any("missed:" in text for text in told), told
    schedules.entries["minutely"]["paused"] = True
    assert schedules.apply(9) == {"minutely": "waits"}, "its token would end with its schedule"
    assert schedules.cron_job("minutely")["spec"]["suspend"]
    held()
    run = ended(schedules, run_id)
    print(f"first fire: {seconds_of(run):.0f} s")
    assert run["body"]["status"] == "completed"
    assert len(schedules.jobs("minutely")) == 1
    assert not steps_of(schedules, run_id, "cached")
    settle(schedules)
    assert schedules.plan(0)
    assert "events.json" in schedules.medflow.objects(f"runs/{run_id}/pods/"), "logs and events are kept"


def is_time_to_tell(schedules: Schedules) -> bool | None:
    """Of a fire that the first run left no room for: two minutes after it was due."""
    (job,) = schedules.jobs("minutely")
    due = datetime.fromisoformat(job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"])
    return True if datetime.now(UTC) > due + timedelta(minutes=3, seconds=5) else None


def seconds_of(run: dict[str, Any]) -> float:
    """From a run's start to its end, as ZenML tells."""
    start, end = (datetime.fromisoformat(run["metadata"][name]) for name in ("start_time", "end_time"))
    return (end - start).total_seconds()


def steps_of(schedules: Schedules, run_id: str, status: str) -> set[str]:
    params = {"pipeline_run_id": run_id, "size": 100}
    items = schedules.zenml("get", "steps", params=params)["items"]
    return {item["name"] for item in items if item["body"]["status"] == status}


def test_the_next_fire_starts_only_the_uncached_steps_and_a_rival_gives_way(schedules: Schedules, source: str) -> None:
    # The rival's own time is far; while it is paused, ZenML lets none of its fires sign in.
    schedules.entries = {"minutely": minutely(source), "rival": minutely(source, cron="0 0 29 2 *")}
    before = len(schedules.jobs("minutely"))
    assert schedules.apply()["rival"] == "created"
    runs = [run_of(schedules, "minutely", after=before)]
    fire(schedules, "rival")
    runs.append(run_of(schedules, "rival"))
    suspend(schedules, "minutely")
    first, second = sorted((ended(schedules, run_id) for run_id in runs), key=lambda run: run["body"]["status"])
    assert (first["body"]["status"], second["body"]["status"]) == ("completed", "stopped")
    assert "is going on already" in second["body"]["status_reason"]
    assert steps_of(schedules, first["id"], "completed") == UNCACHED
    assert {name for name in schedules.medflow.pods(first["id"]) if name} == UNCACHED
    print(f"second fire: {seconds_of(first):.0f} s")
    del schedules.entries["rival"]
    schedules.entries["minutely"]["paused"] = True
    settle(schedules)


def test_only_when_the_data_changed_it_trains_again(schedules: Schedules, source: str) -> None:
    schedules.entries = {"minutely": minutely(source, only_when_the_data_changed=True)}
    schedules.apply()
    newer = twin(schedules, seed=1)
    needless = ended(schedules, run_of(schedules, "minutely"))
    assert needless["body"]["status"] == "stopped"
    assert "data, code and settings are those of chest_xray_pneumonia-" in needless["body"]["status_reason"]
    assert not schedules.medflow.pods(needless["id"])
    put(schedules, newer, source)
    run_id = await_that(lambda: training_run(schedules), 600, "new images trained nothing")
    await_that(lambda: steps_of(schedules, run_id, "completed") & {TRAIN} or None, 900, "the training did not end")
    token = token_of(schedules, "minutely")
    suspend(schedules, "minutely")
    done = schedules.medflow("stack", "stop", str(schedules.medflow.stack), run_id)
    assert done.returncode == 0, done.stderr
    assert schedules.zenml.run(run_id)["body"]["status"] == "stopped"
    assert token in schedules.secrets(), "the next run needs it"


def training_run(schedules: Schedules) -> str | None:
    """The run of the newest fire, where it was not left out."""
    run_id = schedules.jobs("minutely")[-1]["metadata"]["annotations"].get("zenml.io/run-id")
    return run_id if run_id and steps_of(schedules, run_id, "completed") else None


def test_a_fire_that_never_reaches_zenml_is_told(schedules: Schedules, source: str) -> None:
    path, value = schedules.zenml.key("lost")
    schedules.sign_in(value)
    schedules.entries = {"minutely": minutely(source, settings={**SETTINGS, "split.seed": 9})}
    settle(schedules)
    # It comes before a pod of the first fire can sign in.
    schedules.zenml("delete", path)
    schedules.sign_in(schedules.zenml.key("schedules")[1])
    await_that(lambda: failed_job(schedules), 600, "the fire did not fail")
    found = schedules.plan(9)
    assert found["changes"][0]["why"] == ["the API key that it was made with is gone from the server"]
    texts = [fault["text"] for fault in found["faults"]]
    assert any("never reached ZenML" in text and "CredentialsNotValid" in text for text in texts), texts
    suspend(schedules, "minutely")
    schedules.entries.clear()
    settle(schedules)
    assert schedules.zenml.schedules() == []


def failed_job(schedules: Schedules) -> dict[str, Any] | None:
    return next((job for job in schedules.jobs("minutely") if "Failed" in conditions(job)), None)

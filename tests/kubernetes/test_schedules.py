"""Schedules that really fire: what they run, what changes without a fire, what is told, and what is left behind.

On a dataset that no other test of this folder runs, since two runs of one at a time are refused.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from clusters import BUCKET, ROOT, RUNS, Servers
from commands import PLACE, TRAIN, Medflow

pytestmark = [pytest.mark.timeout(3600)]
DATASET = "chest_xray_pneumonia"
UNCACHED = {"resolve", "incumbent", "promote", "record"}
MODEL = {"kind": "monai_unet", "size": 32, "channels": [8, 16], "label_hidden": [16], "label_dropout": [0.1, 0.1]}
SETTINGS = {
    "recipe": [], "models": [MODEL], "train.epochs": 1, "train.batch_size": 16, "evaluate.resamples": 100,
    "promote.resamples": 100, "promote.floors": [], "prune.enabled": False, "quantize.enabled": False,
}  # fmt: skip


@dataclass
class Zenml:
    """The ZenML server as its administrator sees it."""

    servers: Servers
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        login = {"username": self.servers.user, "password": self.servers.password}
        token = self("post", "login", data=login)["access_token"]
        self.session.headers["Authorization"] = f"Bearer {token}"

    def __call__(self, method: str, path: str, **given: Any) -> Any:
        response = self.session.request(method, f"{self.servers.zenml}/api/v1/{path}", **given)
        response.raise_for_status()
        return response.json() if response.content else None

    def key(self, name: str) -> tuple[str, str]:
        """A new service account's API key: the path that names it, and its value."""
        account = self("post", "service_accounts", json={"name": f"{name}-{time.time_ns()}", "active": True})
        made = self("post", f"service_accounts/{account['id']}/api_keys", json={"name": "key", "description": ""})
        return f"service_accounts/{account['id']}/api_keys/{made['id']}", made["body"]["key"]

    def schedules(self) -> list[dict[str, Any]]:
        """Those of this file's dataset."""
        found = []
        for pipeline in self("get", "pipelines", params={"name": DATASET})["items"]:
            params = {"pipeline_id": pipeline["id"], "is_archived": False, "size": 100}
            found += self("get", "schedules", params=params)["items"]
        return found

    def forget(self, schedule: dict[str, Any]) -> None:
        self("delete", f"schedules/{schedule['id']}", params={"soft": False})

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self("get", f"runs/{run_id}", params={"hydrate": True})
        return found


@dataclass
class Schedules:
    """A file of schedules, and the verbs about it."""

    medflow: Medflow
    zenml: Zenml
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> Path:
        path = self.medflow.folder / "schedules.yaml"
        entries = [{"name": name, **entry} for name, entry in self.entries.items()]
        path.write_text(yaml.safe_dump({"on": str(self.medflow.place), "schedules": entries}))
        return path

    def plan(self, code: int, medflow: Medflow | None = None) -> dict[str, Any]:
        done = (medflow or self.medflow)("schedule", "plan", str(self.write()), "--json")
        assert done.returncode == code, done.stdout + done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def apply(self, code: int = 0) -> dict[str, str]:
        """The outcome of each schedule."""
        done = self.medflow("schedule", "apply", str(self.write()), "--json")
        assert done.returncode == code, done.stdout + done.stderr
        return {item["name"]: item["outcome"] for item in json.loads(done.stdout)}

    def why(self, name: str) -> str:
        """What a plan that finds something says is to be done about one schedule, and why."""
        change = next(item for item in self.plan(9)["changes"] if item["name"] == name)
        return f"{change['action']}: {'; '.join(change['why'])}"

    def sign_in(self, key: str) -> None:
        self.medflow.environment["ZENML_STORE_API_KEY"] = key

    def cron_job(self, name: str) -> dict[str, Any]:
        (found,) = self.kube("get", "cronjobs", "-l", f"medflow/schedule={name}")["items"]
        return found

    def kube(self, *words: str) -> Any:
        return self.medflow.cluster.json("-n", RUNS, *words)

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """A schedule's fires, oldest first."""
        items = self.kube("get", "jobs", "-l", f"medflow/schedule={name}")["items"]
        return sorted(items, key=lambda item: item["metadata"]["creationTimestamp"])

    def secrets(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.kube("get", "secrets")["items"]}


@pytest.fixture(scope="module")
def schedules(medflow: Medflow, servers: Servers) -> Iterator[Schedules]:
    zenml = Zenml(servers)
    medflow.place.write_text(
        PLACE.format(stack=medflow.stack, memory="3Gi", timeout=1500, split_on="{}").replace(
            "timeout: 3000}", "timeout: 3000, retries: 0}"
        )
    )
    found = Schedules(medflow, zenml)
    _clear(found)
    servers.forget(DATASET)
    assert medflow("stack", "apply", str(medflow.stack)).returncode == 0
    found.sign_in(zenml.key("schedules")[1])
    yield found
    _clear(found)


def _clear(found: Schedules) -> None:
    """No schedule of this file's dataset, whatever a session left."""
    selector = f"medflow/schedule,pipeline={DATASET}"
    found.medflow.cluster.kubectl("-n", RUNS, "delete", "cronjobs", "-l", selector)
    for item in found.zenml.schedules():
        found.zenml.forget(item)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dataset": DATASET, "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "settings": SETTINGS,
            "source": f"s3://{BUCKET}/nothing-yet", "paused": True, **changes}  # fmt: skip


# -- without a fire -------------------------------------------------------------------------------


def test_a_second_apply_changes_nothing(schedules: Schedules) -> None:
    schedules.entries["nightly"] = entry()
    assert schedules.why("nightly").startswith("create")
    assert schedules.apply() == {"nightly": "created"}
    before = schedules.cron_job("nightly")
    assert (before["spec"]["timeZone"], before["spec"]["concurrencyPolicy"]) == ("Europe/Berlin", "Forbid")
    assert before["spec"]["suspend"] and not schedules.zenml.schedules()[0]["body"]["active"]
    assert schedules.apply() == {"nightly": "unchanged"}
    after = schedules.cron_job("nightly")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert schedules.plan(0)["faults"] == []


def test_time_and_pause_are_changed_in_place(schedules: Schedules) -> None:
    before = schedules.cron_job("nightly")
    schedules.entries["nightly"] = entry(cron="30 4 * * sun", time_zone="UTC", paused=False)
    assert schedules.apply() == {"nightly": "updated"}
    after = schedules.cron_job("nightly")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert (after["spec"]["schedule"], after["spec"]["timeZone"], after["spec"]["suspend"]) == (
        "30 4 * * sun", "UTC", False,
    )  # fmt: skip
    (known,) = schedules.zenml.schedules()
    assert (known["body"]["cron_expression"], known["body"]["active"]) == ("30 4 * * sun", True)
    schedules.entries["nightly"] = entry()
    assert schedules.apply() == {"nightly": "updated"}
    assert schedules.plan(0)


def test_what_was_edited_by_hand_is_told_and_put_right(schedules: Schedules) -> None:
    name = schedules.cron_job("nightly")["metadata"]["name"]
    patch = schedules.medflow.cluster.kubectl
    patch(
        "-n", RUNS, "patch", "cronjob", name, "-p", '{"spec": {"schedule": "0 3 * * *", "concurrencyPolicy": "Allow"}}'
    )
    assert schedules.why("nightly") == (
        "update: cron: 0 2 * * *, the cluster has 0 3 * * *; concurrencyPolicy: Forbid, the cluster has Allow"
    )
    assert schedules.apply() == {"nightly": "updated"}
    where = "/spec/jobTemplate/spec/template/spec/containers/0/env/-"
    added = json.dumps([{"op": "add", "path": where, "value": {"name": "A", "value": "b"}}])
    patch("-n", RUNS, "patch", "cronjob", name, "--type=json", "-p", added)
    assert "edited by hand" in schedules.why("nightly")
    assert schedules.apply() == {"nightly": "re-created"}
    assert schedules.plan(0)


@pytest.mark.parametrize(
    ("words", "remove"),
    {
        "CronJob": ("its CronJob is not in the cluster", lambda schedules: schedules.medflow.cluster.kubectl(
            "-n", RUNS, "delete", "cronjob", schedules.cron_job("nightly")["metadata"]["name"])),
        "schedule": ("ZenML does not know its schedule", lambda schedules: schedules.zenml.forget(
            schedules.zenml.schedules()[0])),
    }.values(),
)  # fmt: skip
def test_half_of_a_schedule_is_made_anew(
    schedules: Schedules, words: str, remove: Callable[[Schedules], object]
) -> None:
    token = token_of(schedules, "nightly")
    remove(schedules)
    assert schedules.why("nightly") == f"re-create: {words}"
    assert schedules.apply() == {"nightly": "re-created"}
    assert schedules.plan(0)
    assert token not in schedules.secrets() and token_of(schedules, "nightly") in schedules.secrets()


def token_of(schedules: Schedules, name: str) -> str:
    container = schedules.cron_job(name)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    return f"zenml-token-{container['args'][-1]}"


def test_another_image_other_code_and_other_settings_are_told(schedules: Schedules, tmp_path: Path) -> None:
    with schedules.medflow.other_stack("medflow-step:", "medflow-step:other-"):
        assert "re-create: the image is" in schedules.why("nightly")
    with_other_code = copied(tmp_path)
    changed = {**schedules.medflow.environment, "PYTHONPATH": str(with_other_code)}
    other = Medflow(schedules.medflow.folder, changed, schedules.medflow.cluster, schedules.medflow.store_folder)
    (change,) = schedules.plan(9, other)["changes"]
    assert change == {"name": "nightly", "action": "re-create", "why": ["the code of its steps has changed"]}
    schedules.entries["nightly"] = entry(settings={**SETTINGS, "train.epochs": 2})
    assert "settings" in schedules.why("nightly")
    schedules.entries["nightly"] = entry()
    assert schedules.plan(0)


def copied(to: Path) -> Path:
    """This checkout's code with a line more in one step."""
    for folder in ("medflow", "steps", "pipelines", "materializers", "configs", "infra"):
        shutil.copytree(ROOT / folder, to / folder)
    with (to / "steps" / "select.py").open("a") as stream:
        stream.write("\nCHANGED = True\n")
    return to


def test_another_image_is_another_cron_job(schedules: Schedules) -> None:
    with schedules.medflow.other_stack("medflow-step:", "medflow-step:other-"):
        assert schedules.apply() == {"nightly": "re-created"}
        image = schedules.cron_job("nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0][
            "image"
        ]
        assert "medflow-step:other-" in image
        assert schedules.apply() == {"nightly": "unchanged"}
    assert schedules.apply() == {"nightly": "re-created"}


def test_a_rotated_key_is_told_and_another_one_taken(schedules: Schedules) -> None:
    path, value = schedules.zenml.key("rotated")
    old = schedules.medflow.environment["ZENML_STORE_API_KEY"]
    schedules.sign_in(value)
    schedules.entries["nightly"] = entry(settings={**SETTINGS, "split.seed": 5})
    assert schedules.apply() == {"nightly": "re-created"}
    schedules.sign_in(old)
    assert schedules.plan(0), "it hangs on the key that it was made with, whoever looks"
    schedules.zenml("put", f"{path}/rotate", json={"retain_period_minutes": 0})
    assert "the API key that it was made with is rotated since" in schedules.why("nightly")
    assert schedules.apply() == {"nightly": "re-created"}
    assert schedules.plan(0)


def test_a_person_s_password_makes_no_schedule(schedules: Schedules) -> None:
    kept = {key: value for key, value in schedules.medflow.environment.items() if key != "ZENML_STORE_API_KEY"}
    other = Medflow(schedules.medflow.folder, kept, schedules.medflow.cluster, schedules.medflow.store_folder)
    schedules.entries["second"] = entry()
    done = other("schedule", "apply", str(schedules.write()))
    del schedules.entries["second"]
    assert done.returncode == 9
    assert "API key of a service account" in done.stderr


def test_what_the_file_no_longer_names_is_gone(schedules: Schedules) -> None:
    token = token_of(schedules, "nightly")
    assert token in schedules.secrets()
    schedules.entries.clear()
    assert schedules.why("nightly") == "delete: the file does not name it"
    assert schedules.apply() == {"nightly": "deleted"}
    assert schedules.kube("get", "cronjobs", "-l", "medflow/schedule=nightly")["items"] == []
    assert schedules.zenml.schedules() == []
    assert token not in schedules.secrets()
    assert schedules.plan(0) == {"changes": [], "faults": [], "local": []}


# -- with fires -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(schedules: Schedules) -> str:
    """The dataset's twin in the object store; other seeds give other images."""
    place = f"{schedules.medflow.store_folder}-images"
    put_twin(schedules, place, seed=0)
    return place


def put_twin(schedules: Schedules, place: str, seed: int) -> None:
    folder = schedules.medflow.folder / f"twin-{seed}"
    words = ("phantom", DATASET, "--to", str(folder), "--images", "90", "--seed", str(seed))
    assert schedules.medflow.elsewhere("twins")(*words).returncode == 0
    store = schedules.medflow.cluster.store.client
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload_file(str(path), BUCKET, f"{place}/{path.relative_to(folder).as_posix()}")


def minutely(source: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"cron": "* * * * *", "source": f"s3://{BUCKET}/{source}", "paused": False, **changes}
    return entry(**given)


def run_of(schedules: Schedules, name: str, after: int = 0, seconds: float = 600) -> str:
    """The run of a schedule's newest fire, as soon as one has reached ZenML beyond those that had before."""

    def newest() -> str | None:
        runs = [job["metadata"]["annotations"].get("zenml.io/run-id") for job in schedules.jobs(name)]
        return runs[-1] if len(runs) > after and runs[-1] else None

    return await_that(newest, seconds, f"no fire of {name} reached ZenML")


def ended(schedules: Schedules, run_id: str, seconds: float = 1800) -> dict[str, Any]:
    def finished() -> dict[str, Any] | None:
        run = schedules.zenml.run(run_id)
        return run if run["body"]["status"] in ("completed", "failed", "stopped") else None

    return await_that(finished, seconds, f"run {run_id} did not end")


def await_that(ask: Callable[[], Any], seconds: float, otherwise: str) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := ask()) is not None:
            return found
        time.sleep(1)
    raise AssertionError(otherwise)


def settle(schedules: Schedules) -> None:
    """Apply until nothing waits for a run: its job ends a moment after it."""
    until = time.monotonic() + 600
    while True:
        done = schedules.medflow("schedule", "apply", str(schedules.write()), "--json")
        if done.returncode == 0:
            return
        assert "because a run goes on" in done.stderr and time.monotonic() < until, done.stderr


def test_it_really_fires_and_no_second_run_starts_beside_it(schedules: Schedules, source: str) -> None:
    schedules.entries = {"minutely": minutely(source)}
    assert schedules.apply() == {"minutely": "created"}
    run_id = run_of(schedules, "minutely")
    started = time.monotonic()
    await_that(lambda: time.monotonic() - started > 190 or None, 200, "")
    if "running" in schedules.zenml.run(run_id)["body"]["status"]:
        assert "left out because the run before went on" in schedules.plan(9)["faults"][0]["text"]
    schedules.entries["minutely"]["paused"] = True
    assert schedules.apply(9) == {"minutely": "waits"}, "its token would end with its schedule"
    assert schedules.cron_job("minutely")["spec"]["suspend"]
    run = ended(schedules, run_id)
    print(f"first fire: {time.monotonic() - started:.0f} s")
    assert run["body"]["status"] == "completed"
    assert len(schedules.jobs("minutely")) == 1
    assert not steps_of(schedules, run_id, "cached")
    settle(schedules)
    assert schedules.plan(0)
    assert "events.json" in schedules.medflow.objects(f"runs/{run_id}/pods/"), "logs and events are kept"


def steps_of(schedules: Schedules, run_id: str, status: str) -> set[str]:
    params = {"pipeline_run_id": run_id, "size": 100}
    items = schedules.zenml("get", "steps", params=params)["items"]
    return {item["name"] for item in items if item["body"]["status"] == status}


def test_the_next_fire_starts_only_the_uncached_steps_and_a_rival_gives_way(schedules: Schedules, source: str) -> None:
    schedules.entries = {"minutely": minutely(source), "rival": minutely(source)}
    before = len(schedules.jobs("minutely"))
    assert schedules.apply()["rival"] == "created"
    runs = [run_of(schedules, "minutely", after=before), run_of(schedules, "rival")]
    started = time.monotonic()
    for item in schedules.entries.values():
        item["paused"] = True
    schedules.medflow("schedule", "apply", str(schedules.write()))
    first, second = sorted((ended(schedules, run_id) for run_id in runs), key=lambda run: run["body"]["status"])
    print(f"second fire: {time.monotonic() - started:.0f} s")
    assert (first["body"]["status"], second["body"]["status"]) == ("completed", "stopped")
    assert "is going on already" in second["body"]["status_reason"]
    assert steps_of(schedules, first["id"], "completed") == UNCACHED
    assert {name for name in schedules.medflow.pods(first["id"]) if name} == UNCACHED
    del schedules.entries["rival"]
    settle(schedules)


def test_only_when_the_data_changed_it_trains_again(schedules: Schedules, source: str) -> None:
    schedules.entries = {"minutely": minutely(source, only_when_the_data_changed=True)}
    schedules.apply()
    left_out = ended(schedules, run_of(schedules, "minutely"))
    assert left_out["body"]["status"] == "stopped"
    assert "data, code and settings are those of chest_xray_pneumonia-" in left_out["body"]["status_reason"]
    assert not schedules.medflow.pods(left_out["id"])
    put_twin(schedules, source, seed=1)
    run_id = await_that(lambda: training_run(schedules), 600, "new images trained nothing")
    await_that(lambda: steps_of(schedules, run_id, "completed") & {TRAIN} or None, 900, "the training did not end")
    token = token_of(schedules, "minutely")
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
    schedules.entries = {"minutely": minutely(source, settings={**SETTINGS, "split.seed": 9}, paused=True)}
    settle(schedules)
    schedules.entries["minutely"]["paused"] = False
    assert schedules.apply() == {"minutely": "updated"}
    schedules.zenml("delete", path)
    schedules.sign_in(schedules.zenml.key("schedules")[1])
    await_that(lambda: failed_job(schedules), 600, "the fire did not fail")
    found = schedules.plan(9)
    assert found["changes"][0]["why"] == ["the API key that it was made with is gone from the server"]
    texts = [fault["text"] for fault in found["faults"]]
    assert any("never reached ZenML" in text and "CredentialsNotValid" in text for text in texts), texts
    schedules.entries.clear()
    settle(schedules)
    assert schedules.zenml.schedules() == []


def failed_job(schedules: Schedules) -> dict[str, Any] | None:
    conditions = [(job, item) for job in schedules.jobs("minutely") for item in job["status"].get("conditions", [])]
    return next((job for job, item in conditions if item["type"] == "Failed"), None)

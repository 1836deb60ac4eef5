"""Schedules that never fire: what is made and removed, what changes in place, what is told and put right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import ROOT, RUNS
from commands import Medflow
from scheduling import SETTINGS, Schedules, entry, token_of

pytestmark = [pytest.mark.timeout(3600)]


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
    token = token_of(schedules, "nightly")
    schedules.zenml("put", f"{path}/rotate", json={"retain_period_minutes": 0})
    assert "the API key that it was made with is rotated since" in schedules.why("nightly")
    assert schedules.apply() == {"nightly": "re-created"}
    assert token not in schedules.secrets() and token_of(schedules, "nightly") in schedules.secrets()
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

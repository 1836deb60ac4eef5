"""A file of schedules, the verbs about it, and what they leave behind.

On a dataset that no other test of this folder runs, since two runs of one at a time are refused.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml
from clusters import BUCKET, RUNS, Servers
from commands import Medflow

DATASET = "chest_xray_pneumonia"
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
    accounts: list[str] = field(default_factory=list)

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
        self.accounts.append(account["id"])
        made = self("post", f"service_accounts/{account['id']}/api_keys", json={"name": "key", "description": ""})
        return f"service_accounts/{account['id']}/api_keys/{made['id']}", made["body"]["key"]

    def close_accounts(self) -> None:
        """No key of theirs is good for anything from here on; they own runs and cannot be removed."""
        for account in self.accounts:
            self("put", f"service_accounts/{account}", json={"active": False})

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

    def sign_out(self) -> None:
        """From here on by name and password again."""
        del self.medflow.environment["ZENML_STORE_API_KEY"]

    def cron_job(self, name: str) -> dict[str, Any]:
        (found,) = self.kube("get", "cronjobs", "-l", f"medflow/schedule={name}")["items"]
        return found

    def kube(self, *words: str) -> Any:
        return self.medflow.cluster.json("-n", RUNS, *words)

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """A schedule's fires, oldest first; those of a CronJob that was made anew are on their way out."""
        owner = self.cron_job(name)["metadata"]["uid"]
        items = self.kube("get", "jobs", "-l", f"medflow/schedule={name}")["items"]
        own = [item for item in items if item["metadata"]["ownerReferences"][0]["uid"] == owner]
        return sorted(own, key=lambda item: item["metadata"]["creationTimestamp"])

    def secrets(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.kube("get", "secrets")["items"]}


def clear(found: Schedules) -> None:
    """No schedule of this file's dataset, whatever a session or a test that failed left."""
    selector = f"medflow/schedule,pipeline={DATASET}"
    for item in found.kube("get", "cronjobs", "-l", selector)["items"]:
        found.medflow.cluster.kubectl("-n", RUNS, "delete", "secret", token_in(item), "--ignore-not-found")
    found.medflow.cluster.kubectl("-n", RUNS, "delete", "cronjobs", "-l", selector)
    for known in found.zenml.schedules():
        found.zenml.forget(known)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dataset": DATASET, "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "settings": SETTINGS,
            "source": f"s3://{BUCKET}/nothing-yet", "paused": True, **changes}  # fmt: skip


def token_of(schedules: Schedules, name: str) -> str:
    """The Secret by which a schedule's runs sign in."""
    return token_in(schedules.cron_job(name))


def token_in(cron_job: dict[str, Any]) -> str:
    container = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    return f"zenml-token-{container['args'][-1]}"

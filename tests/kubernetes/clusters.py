"""A cluster as the tests use it: an administrator's way to it, its object store, the servers on it."""

from __future__ import annotations

import base64
import json
import os
import pwd
import socket
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import requests

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "infra" / "scripts"
#: The user's own home: HOME is a temporary folder in tests.
STATE = Path(os.environ.get("CLUSTER_HOME", f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/test-cluster"))
BUCKET = "medflow"
RUNS, PLATFORM = "medflow", "medflow-platform"


@dataclass(frozen=True)
class Store:
    """An S3 server that machine and pods reach by one address."""

    url: str
    key: str
    secret: str

    @cached_property
    def client(self) -> Any:
        """Made once: that costs more than an answer, and tests ask several times a second."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}


@dataclass(frozen=True)
class Cluster:
    """A cluster and an administrator's way to it."""

    kubeconfig: Path
    registry: str

    @cached_property
    def environment(self) -> dict[str, str]:
        path = f"{STATE / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    @cached_property
    def context(self) -> str:
        return self.kubectl("config", "current-context").strip()

    @cached_property
    def address_of_node(self) -> str:
        node = self.json("get", "nodes")["items"][0]
        return next(each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")

    @cached_property
    def is_on_this_machine(self) -> bool:
        with socket.socket() as here:
            try:
                here.bind((self.address_of_node, 0))
            except OSError:
                return False
        return True

    @cached_property
    def store(self) -> Store:
        return Store(
            url=os.environ.get("AWS_ENDPOINT_URL", f"http://{self.address_of_node}:7070"),
            key=os.environ.get("AWS_ACCESS_KEY_ID", "test"),
            secret=os.environ.get("AWS_SECRET_ACCESS_KEY", "test-secret"),
        )

    def run(self, *command: str | Path, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(word) for word in command],
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Standard output of a command that must succeed."""
        done = self.run("kubectl", *words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}\n{done.stderr}"
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.kubectl(*words, "-o", "json"))

    def address(self, service: str, namespace: str = PLATFORM) -> str:
        """The URL of a Service, by its cluster address: pods and the test cluster's machine both reach it."""
        spec = self.json("-n", namespace, "get", "service", service)["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def kubeconfig_of(self, account: str) -> str:
        """What somebody with the rights of a service account has, its only context called `client`."""
        token = self.kubectl("-n", RUNS, "create", "token", account, "--duration", "3h").strip()
        mine = json.loads(self.kubectl("config", "view", "--minify", "--flatten", "-o", "json"))
        return json.dumps({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": mine["clusters"][0]["cluster"]}],
            "users": [{"name": account, "user": {"token": token}}],
            "contexts": [{"name": "client", "context": {"cluster": "here", "user": account}}],
            "current-context": "client",
        })  # fmt: skip

    def secret(self, name: str, key: str, namespace: str = PLATFORM) -> str:
        data = self.json("-n", namespace, "get", "secret", name)["data"]
        return base64.b64decode(data[key]).decode()


@dataclass(frozen=True)
class Servers:
    """The ZenML and MLflow servers of the dev overlay."""

    zenml: str
    mlflow: str
    user: str
    password: str

    @cached_property
    def api(self) -> requests.Session:
        """Signed in at the ZenML server."""
        api = requests.Session()
        signed_in = api.post(f"{self.zenml}/api/v1/login", data={"username": self.user, "password": self.password})
        api.headers["Authorization"] = f"Bearer {signed_in.json()['access_token']}"
        return api

    def forget(self, dataset: str) -> None:
        """Remove runs, pipeline and model of a dataset, so that a test does not meet what another session left."""
        for kind, query in (("runs", "pipeline"), ("pipelines", "name"), ("models", "name")):
            found = self.api.get(f"{self.zenml}/api/v1/{kind}", params={query: dataset, "size": 500}).json()
            for item in found["items"]:
                self.api.delete(f"{self.zenml}/api/v1/{kind}/{item['id']}").raise_for_status()

    def steps(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Each step of a run, with what it read and wrote."""
        params = {"pipeline_run_id": run_id, "size": 100, "hydrate": True}
        found = self.api.get(f"{self.zenml}/api/v1/steps", params=params)
        found.raise_for_status()
        return {item["name"]: item for item in found.json()["items"]}

    def token_secret(self, run_id: str) -> str:
        """The name of the Secret by which a run's pods sign in."""
        run = self.api.get(f"{self.zenml}/api/v1/runs/{run_id}").json()
        return f"zenml-token-{run['resources']['snapshot']['id']}"

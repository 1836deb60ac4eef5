"""The objects of one training over several nodes: a runtime of Kubeflow Trainer, and the job that uses it.

Trainer makes of both a JobSet of one Job, whose pods it gives torchrun's variables (``PET_*``). A pod that ends before
its work is done ends the Job, and the JobSet begins it anew, all pods together: ranks that have lost a neighbour
cannot go on. They take up the newest checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medflow.config.sections.place import StepPlace
from medflow.config.sections.stack import ClusterConfig
from medflow.platform.kubernetes import settings

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
RUNTIMES, JOBS = "trainingruntimes", "trainjobs"
#: The program of each node; torchrun starts it once a device.
PROGRAM = "medflow.platform.kubernetes.node"
#: Trainer gives its variables to the container of this name.
CONTAINER = "node"
#: Seconds in which a pod that is ended may put its last words down.
GRACE_SECONDS = 10


@dataclass(frozen=True)
class Training:
    """One training of one step, to be run by nodes."""

    run_id: str
    step: str
    image: str
    folder: str
    """Where its order lies in the artifact store."""
    asked: StepPlace
    """What each node gets."""
    processes: int
    """Of each node."""
    cluster: ClusterConfig
    environment: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Variables as a container has them; what is secret is a reference."""
    owner: Mapping[str, Any] | None = None
    """The pod that asks, as an owner reference: what it leaves behind goes with it."""

    @property
    def name(self) -> str:
        """The same for every attempt of the step, so that the next one finds what the last has left."""
        return f"medflow-{hashlib.sha256(f'{self.run_id}/{self.step}'.encode()).hexdigest()[:12]}"

    @property
    def job(self) -> str:
        """The Job that the JobSet makes."""
        return f"{self.name}-{CONTAINER}-0"

    @property
    def labels(self) -> dict[str, str]:
        return {
            "app.kubernetes.io/part-of": "medflow",
            "app.kubernetes.io/component": "training",
            "medflow.dev/run": self.run_id,
            "medflow.dev/step": self.step[:63].strip("_-."),
        }


def runtime(training: Training) -> dict[str, Any]:
    """How a node is run."""
    jobs = {
        "name": CONTAINER,
        "template": {
            "metadata": {"labels": {**training.labels, f"{GROUP}/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": training.asked.timeout,
                "template": {"metadata": {"labels": training.labels}, "spec": _pod(training)},
            },
        },
    }
    restarts = {"maxRestarts": training.asked.retries, "restartStrategy": "BlockingRecreate"}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainingRuntime",
        "metadata": _metadata(training),
        "spec": {
            "mlPolicy": {"numNodes": training.asked.nodes, "torch": {"numProcPerNode": training.processes}},
            "template": {"spec": {"failurePolicy": restarts, "replicatedJobs": [jobs]}},
        },
    }


def train_job(training: Training) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": _metadata(training),
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": training.name},
            "trainer": {"numNodes": training.asked.nodes, "numProcPerNode": training.processes},
        },
    }


def _metadata(training: Training) -> dict[str, Any]:
    owners = {"ownerReferences": [dict(training.owner)]} if training.owner else {}
    return {"name": training.name, "labels": training.labels, **owners}


def _pod(training: Training) -> dict[str, Any]:
    given = settings.pod_settings(training.asked, training.cluster)
    container = {
        "name": CONTAINER,
        "image": training.image,
        "imagePullPolicy": "IfNotPresent",
        # Nodes, processes, rank and address come from Trainer's variables.
        "command": ["python", "-m", "torch.distributed.run", "-m", PROGRAM],
        "args": [training.folder],
        "env": list(training.environment),
        "envFrom": given["env_from"],
        "resources": given["resources"],
        "securityContext": given["container_security_context"],
        "volumeMounts": given["volume_mounts"],
    }
    return {
        "containers": [container],
        "restartPolicy": "Never",
        "serviceAccountName": training.cluster.step_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": settings.POD_SECURITY,
        "volumes": given["volumes"],
        "tolerations": given["tolerations"],
        "nodeSelector": given["node_selectors"],
        "imagePullSecrets": [{"name": name} for name in given["image_pull_secrets"]],
        **settings.classes(training.asked),
    }

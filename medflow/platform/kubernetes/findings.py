"""What `medflow stack check` tells: each check, whether it is well, and what to do where it is not."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from medflow.records import Record


class Check(StrEnum):
    SERVER = "server"
    STACK = "stack"
    STORE = "store"
    CONTEXT = "context"
    NAMESPACE = "namespace"
    ACCOUNTS = "accounts"
    RIGHTS = "rights"
    NODES = "nodes"
    GPU = "gpu"
    TAINTS = "taints"
    QUOTA = "quota"
    PRIORITY = "priority"
    RUNTIME = "runtime"
    TRAINER = "trainer"
    SHM = "shm"
    SECRETS = "secrets"
    VOLUMES = "volumes"
    IMAGE = "image"
    POD = "pod"
    SERVER_IN_POD = "server, from a pod"
    STORE_IN_POD = "store, from a pod"
    MLFLOW_IN_POD = "mlflow, from a pod"


class Finding(Record):
    check: Check
    ok: bool
    found: str
    remedy: str = ""

    @classmethod
    def well(cls, check: Check, found: str) -> Self:
        return cls(check=check, ok=True, found=found)

    @classmethod
    def amiss(cls, check: Check, found: str, remedy: str) -> Self:
        return cls(check=check, ok=False, found=found, remedy=remedy)

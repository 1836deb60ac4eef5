"""Look at the cluster from inside: one pod with the image, the account and the security of a step.

Where the pod does not start, that is the finding: Pod Security, the image, a secret, no node.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from medflow.config.sections.place import DEFAULT, PlaceConfig, StepPlace, Volume
from medflow.config.sections.stack import StackConfig, StoreConfig
from medflow.errors import PlatformError
from medflow.platform.kubernetes import cluster, reasons, settings
from medflow.platform.kubernetes import probe as program
from medflow.platform.kubernetes.cluster import Cluster, Observed
from medflow.platform.kubernetes.findings import Check, Finding
from medflow.platform.kubernetes.readback import quantity

#: An image of several gigabytes may have to be pulled first.
START_SECONDS = 900.0
POLL_SECONDS = 1.0
ABSENT = "not found"
ABSENT_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')


def probe(here: Cluster, stack: StackConfig, place: PlaceConfig) -> Iterator[Finding]:
    """Findings of one pod; where a secret is absent, of another one without any, where a claim is, without that."""
    names = sorted({name for step in place.steps.values() for name in step.secrets})
    claims = sorted({volume.claim for step in place.steps.values() for volume in step.volumes})
    while True:
        seen, log = _run(here, manifest(stack, place, names, claims))
        # What is absent and was not asked for here, a webhook's for instance, is told as any pod's trouble.
        if names and (secret := _absent_secret(seen)):
            remedy = f"create it, see infra/scripts/make-secrets; a step that needs it fails otherwise ({secret})"
            yield Finding.amiss(Check.SECRETS, f"a secret is not in the namespace {here.namespace}: {secret}", remedy)
            names = []
        elif (claim := _absent_claim(seen)) in claims:
            remedy = "create it, or name another one under `volumes` in the place's YAML (configs/on)"
            yield Finding.amiss(Check.VOLUMES, f"there is no claim {claim} in the namespace {here.namespace}", remedy)
            claims.remove(claim)
        else:
            yield from _told(seen, log, _shm_of(place), stack)
            return


def manifest(stack: StackConfig, place: PlaceConfig, names: list[str], claims: list[str]) -> dict[str, Any]:
    """A job of one pod with all secrets and claims; unlike a step's, it does not start where a secret is absent."""
    # Each claim at a path of its own: two steps may have different ones at the same path.
    volumes = tuple(Volume(claim=claim, path=f"/claims/{number}") for number, claim in enumerate(claims))
    asked = place.steps[DEFAULT].model_copy(update={"secrets": (), "volumes": volumes, "shm": _shm_of(place)})
    given = settings.pod_settings(asked, stack.cluster)
    container = {
        "name": "main",
        "image": stack.image,
        "command": ["python", "-m", program.MODULE],
        "args": [f"{name}={url}" for name, url in _addresses(stack).items()],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": asked.memory}},
        "securityContext": given["container_security_context"],
        "volumeMounts": given["volume_mounts"],
        "env": given["env"],
        "envFrom": [{"secretRef": {"name": name}} for name in names],
    }
    pod = {
        "containers": [container],
        "restartPolicy": "Never",
        "serviceAccountName": stack.cluster.step_account,
        "securityContext": settings.POD_SECURITY,
        "volumes": given["volumes"],
        "imagePullSecrets": [{"name": name} for name in stack.cluster.pull_secrets],
        "tolerations": given["tolerations"],
        "nodeSelector": given["node_selectors"],
        **settings.classes(asked),
    }
    name = f"medflow-check-{secrets.token_hex(4)}"
    labels = {"app.kubernetes.io/part-of": "medflow", "medflow": "check"}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(START_SECONDS),
            "ttlSecondsAfterFinished": 300,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _run(here: Cluster, body: dict[str, Any]) -> tuple[Observed, str]:
    name = body["metadata"]["name"]
    _create(here, body)
    try:
        seen = _await(here, name)
        return seen, (here.log(seen.pods[-1]["metadata"]["name"]) or "") if seen.pods else ""
    finally:
        here.delete_job(name)


def _create(here: Cluster, body: dict[str, Any]) -> None:
    from kubernetes.client import ApiException

    try:
        here.batch.create_namespaced_job(here.namespace, body)
    except ApiException as error:
        # Whether jobs may be made at all was asked before.
        hint = f"look at the quotas of the namespace {here.namespace}, and at the cluster's policies and webhooks"
        raise PlatformError(f"the job of the check: {cluster.refused(error).message}", hint=hint) from error


def _await(here: Cluster, name: str) -> Observed:
    until = time.monotonic() + START_SECONDS
    waiting_since = time.monotonic()
    while True:
        seen = here.job(name)
        if seen is None:
            raise PlatformError(
                f"the job of the check was removed: expected {name} in the namespace {here.namespace}",
                hint="check again; where it is removed again, look at who or what deletes jobs there",
            )
        stuck = reasons.pending(seen) is not None and time.monotonic() - waiting_since > PENDING_SECONDS
        if reasons.over(seen) or reasons.fatal(seen) or stuck or time.monotonic() > until:
            return seen
        time.sleep(POLL_SECONDS)


#: What a pod may wait for is told after so long.
PENDING_SECONDS = 30.0


def _absent_secret(seen: Observed) -> str | None:
    reason = reasons.fatal(seen) or ""
    return reason.rpartition(": ")[2] if "CreateContainerConfigError" in reason and ABSENT in reason else None


def _absent_claim(seen: Observed) -> str | None:
    """As the scheduler tells it: persistentvolumeclaim "images" not found."""
    found = ABSENT_CLAIM.search(reasons.pending(seen) or "")
    return found[1] if found else None


def _addresses(stack: StackConfig) -> dict[str, str]:
    """What a pod must reach, by the name under which it is told."""
    return {"server": stack.server, "mlflow": stack.mlflow.uri, "store": stack.store.endpoint or _amazon(stack.store)}


def _amazon(store: StoreConfig) -> str:
    """The bucket at Amazon's: the server's own page sends who asks for it on to another host."""
    bucket, _, _ = store.uri.removeprefix("s3://").partition("/")
    china = ".cn" if store.region.startswith("cn-") else ""
    return f"https://s3.{store.region}.amazonaws.com{china}/{bucket}"


def _told(seen: Observed, log: str, shm: str | None, stack: StackConfig) -> Iterator[Finding]:
    line = next((line.partition(program.MARK)[2] for line in log.splitlines() if program.MARK in line), None)
    if line is None:
        problem = reasons.fatal(seen) or reasons.pending(seen) or reasons.ended(seen) or "it did not end in time"
        check = Check.IMAGE if "Image" in problem.partition(":")[0] else Check.POD  # as in ErrImagePull
        yield Finding.amiss(check, f"a pod of a step does not run: {problem}", _remedy(check, log))
        return
    told: Mapping[str, Any] = json.loads(line)
    yield Finding.well(Check.IMAGE, f"{stack.image} runs")
    for name, check in REACHED.items():
        if name not in told["reached"]:
            continue
        problem = told["reached"][name]
        if problem:
            remedy = "the address in the stack must be valid in pods; look at network policies and DNS"
            yield Finding.amiss(check, f"{_addresses(stack)[name]}: {problem}", remedy)
        else:
            yield Finding.well(check, "answers")
    yield _shm_finding(shm, told["shm"])


REACHED = {"server": Check.SERVER_IN_POD, "store": Check.STORE_IN_POD, "mlflow": Check.MLFLOW_IN_POD}


def _remedy(check: Check, log: str) -> str:
    if check is Check.IMAGE:
        return "push it (`make images`), name a tag that the registry has, or give `pull_secrets` in the stack"
    last = log.strip().splitlines()[-1] if log.strip() else "nothing"
    return f"look at the namespace's events and quotas; the pod said: {last}"


def _shm_finding(asked: str | None, found: int) -> Finding:
    wanted = quantity(asked) or 0.0
    if found < wanted:
        text = f"/dev/shm has {found / 2**20:.0f} MiB, asked for {asked}"
        return Finding.amiss(Check.SHM, text, "the cluster does not give memory volumes of this size; lower `shm`")
    return Finding.well(Check.SHM, f"/dev/shm has {found / 2**20:.0f} MiB")


def _shm_of(place: PlaceConfig) -> str | None:
    sizes: list[StepPlace] = [step for step in place.steps.values() if step.shm]
    return max((step.shm for step in sizes if step.shm), key=lambda size: quantity(size) or 0.0, default=None)

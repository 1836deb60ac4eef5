"""Whether a cluster has what a run needs, looked at before one is started: `medflow stack check`.

Each check gives findings with a remedy. What a pod can reach is asked in a pod, with the image, the account and the
limits of a step (`probe`); what nodes, quotas and rights allow is asked of the API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from medflow.config.sections.place import PlaceConfig, StepPlace
from medflow.config.sections.stack import StackConfig, StoreConfig
from medflow.errors import MedflowError, PlatformError
from medflow.platform.kubernetes import cluster, fitting, probing, serving_objects, trainjobs
from medflow.platform.kubernetes.cluster import Cluster
from medflow.platform.kubernetes.findings import Check, Finding
from medflow.platform.kubernetes.registration import credentials

#: What who types `medflow run` must be allowed in the namespace: verb, group, resource.
RIGHTS = (
    ("create", "batch", "jobs"),
    ("get", "batch", "jobs"),
    ("list", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "", "events"),
    ("create", "", "secrets"),
    ("patch", "", "secrets"),
    ("delete", "", "secrets"),
)
SECONDS = 10
#: What brings a class.
MADE_BY = {
    Check.PRIORITY: "apply infra/kubernetes",
    Check.RUNTIME: "apply the overlay gpu of infra/kubernetes, or take `runtime_class` out where nodes need none",
}


def check(name: str, stack: StackConfig, place: PlaceConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Every finding, those that are well included. What hangs on one that is amiss is not asked."""
    found = [*_server(name, stack, environment), *_store(stack, environment)]
    try:
        here = cluster.connect(stack.cluster.context, stack.cluster.namespace)
    except PlatformError as error:
        return [*found, Finding.amiss(Check.CONTEXT, error.message, error.hint)]
    problem = _unreachable(here)
    if problem:
        return [*found, problem]
    found += [Finding.well(Check.CONTEXT, f"{stack.cluster.context}, namespace {here.namespace}")]
    allowed = list(_with_refusals(Check.ACCOUNTS, _accounts(here, stack, place)))
    allowed += _with_refusals(Check.RIGHTS, _rights(here))
    found += [*allowed, *_with_refusals(Check.NODES, _nodes(here, place))]
    found += [*_with_refusals(Check.QUOTA, quota_findings(here, place)), *_shm(place)]
    found += _with_refusals(Check.PRIORITY, class_findings(here, place))
    found += _with_refusals(Check.TRAINER, trainer_findings(here, place))
    if all(item.ok for item in allowed):
        found += _with_refusals(Check.POD, probing.probe(here, stack, place))
    return found


def _with_refusals(check: Check, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings; what the API server refuses while they are made, or leaves unanswered, is the last one."""
    try:
        with cluster.refusals_told():
            yield from findings
    except PlatformError as error:
        yield Finding.amiss(check, error.message, error.hint)


def _server(name: str, stack: StackConfig, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The ZenML server takes the credentials, and has the stack as its YAML says."""
    from medflow.platform.kubernetes import registration
    from medflow.platform.stack import unregistered_client

    try:
        client = unregistered_client()
        differing = registration.differing(client, name, stack, environment)
    except Exception as error:  # whatever a client of a server that is not there raises
        text = f"{stack.server}: {type(error).__name__}: {error}"[:200]
        yield Finding.amiss(Check.SERVER, text, "check the address in the stack's YAML and ZENML_STORE_API_KEY")
        return
    yield Finding.well(Check.SERVER, f"{stack.server} answers")
    if differing:
        told = f"not as the YAML says: {', '.join(differing)}"
        yield Finding.amiss(Check.STACK, told, f"`medflow stack apply {name}`")
    else:
        yield Finding.well(Check.STACK, f"{name} is registered as the YAML says")


def _store(stack: StackConfig, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The bucket is there and takes an object."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        values = credentials(stack, environment)
        client = boto3.client(
            "s3", endpoint_url=stack.store.endpoint, region_name=stack.store.region,
            aws_access_key_id=values["key"], aws_secret_access_key=values["secret"],
            config=Config(connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 2}),
        )  # fmt: skip
        bucket, key = _bucket(stack.store)
        client.put_object(Bucket=bucket, Key=key, Body=b"medflow stack check")
        client.delete_object(Bucket=bucket, Key=key)
    except MedflowError as error:
        yield Finding.amiss(Check.STORE, error.message, error.hint)
    except (BotoCoreError, ClientError, ValueError) as error:  # the last of an address that is none
        text = f"{stack.store.uri} at {stack.store.endpoint or 'Amazon'}: {error}"
        yield Finding.amiss(Check.STORE, text, "check endpoint, bucket, key and secret; make the bucket first")
    else:
        yield Finding.well(Check.STORE, f"{stack.store.uri} takes an object")


def _bucket(store: StoreConfig) -> tuple[str, str]:
    bucket, _, folder = store.uri.removeprefix("s3://").partition("/")
    return bucket, "/".join(filter(None, (folder.strip("/"), "medflow-stack-check")))


def _unreachable(here: Cluster) -> Finding | None:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        here.core.list_namespaced_pod(here.namespace, limit=1, _request_timeout=SECONDS)
        here.core.read_namespaced_service_account("default", here.namespace, _request_timeout=SECONDS)
    except ApiException as error:
        if error.status == cluster.NOT_FOUND:
            return Finding.amiss(
                Check.NAMESPACE, f"there is no namespace {here.namespace}", "apply infra/kubernetes, see its overlays"
            )
        # Who has no rights in a namespace is not told whether there is one.
        text = f"namespace {here.namespace}: {error.status} {error.reason}: it is absent, or no rights in it were given"
        remedy = "check `namespace` in the stack's YAML, or bind the role medflow-client there to who signs in"
        return Finding.amiss(Check.NAMESPACE, text, remedy)
    except HTTPError as error:
        text = f"the API server does not answer: {type(error).__name__}"
        return Finding.amiss(Check.CONTEXT, text, "check that the cluster runs, and KUBECONFIG")
    return None


def _accounts(here: Cluster, stack: StackConfig, place: PlaceConfig) -> Iterator[Finding]:
    from kubernetes.client import ApiException

    names = [stack.cluster.orchestrator_account, stack.cluster.step_account]
    names += [stack.cluster.trainer_account] if _with_nodes(place) else []
    for account in names:
        try:
            here.core.read_namespaced_service_account(account, here.namespace)
        except ApiException as error:
            text = f"service account {account}: {error.reason}"
            yield Finding.amiss(Check.ACCOUNTS, text, "apply infra/kubernetes, or name another account in the stack")
        else:
            yield Finding.well(Check.ACCOUNTS, account)


def _rights(here: Cluster) -> Iterator[Finding]:
    from kubernetes import client

    api = client.AuthorizationV1Api(here.core.api_client)
    denied = []
    for verb, group, resource in RIGHTS:
        kind, _, part = resource.partition("/")
        asked = client.V1ResourceAttributes(
            namespace=here.namespace, verb=verb, group=group, resource=kind, subresource=part or None
        )
        spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked)
        answer = api.create_self_subject_access_review(client.V1SelfSubjectAccessReview(spec=spec))
        if not answer.status.allowed:
            denied.append(f"{verb} {resource}")
    if denied:
        remedy = "bind the role medflow-client (infra/kubernetes/base/roles.yaml) to who the context signs in as"
        yield Finding.amiss(Check.RIGHTS, f"not allowed: {', '.join(denied)}", remedy)
    else:
        yield Finding.well(Check.RIGHTS, f"all {len(RIGHTS)} that a run needs")


def _nodes(here: Cluster, place: PlaceConfig) -> Iterator[Finding]:
    """Every step finds a node whose labels, taints and size suit it."""
    nodes = _plain(here, lambda: here.core.list_node())
    if nodes is None:
        yield Finding.amiss(Check.NODES, "nodes may not be listed", "bind the cluster role medflow-client")
        return
    runtimes = _runtimes(here, place) or []
    for step, asked in _asked(place):
        yield from fitting.node_findings(step, fitting.under_runtime(asked, runtimes), nodes)


def quota_findings(here: Cluster, place: PlaceConfig) -> Iterator[Finding]:
    """The quotas of the namespace leave room for every step."""
    quotas = _plain(here, lambda: here.core.list_namespaced_resource_quota(here.namespace))
    if quotas is None:
        yield Finding.amiss(Check.QUOTA, "quotas may not be listed", "bind the role medflow-client")
        return
    for step, asked in _asked(place):
        yield from fitting.quota_findings(step, asked, place.orchestrator, quotas)


def class_findings(here: Cluster, place: PlaceConfig) -> Iterator[Finding]:
    """The priority and runtime classes that a place names are there, and the priority of models in service."""
    from kubernetes import client

    priorities = {asked.priority for _, asked in _asked(place) if asked.priority} | {serving_objects.PRIORITY}
    known = _plain(here, client.SchedulingV1Api(here.core.api_client).list_priority_class)
    yield from _absent(Check.PRIORITY, "priority class", priorities, known)
    runtimes = {asked.runtime_class for _, asked in _asked(place) if asked.runtime_class}
    if runtimes:
        yield from _absent(Check.RUNTIME, "runtime class", runtimes, _runtimes(here, place))


def _runtimes(here: Cluster, place: PlaceConfig) -> list[dict[str, Any]] | None:
    """The cluster's runtime classes, where a step asks for one; None where they may not be listed."""
    from kubernetes import client

    if not any(asked.runtime_class for _, asked in _asked(place)):
        return []
    return _plain(here, client.NodeV1Api(here.core.api_client).list_runtime_class)


def _absent(check: Check, kind: str, wanted: set[str], items: list[dict[str, Any]] | None) -> Iterator[Finding]:
    if items is None:
        yield Finding.amiss(check, f"the kind {kind} may not be listed", "bind the cluster role medflow-client")
        return
    known = {item["metadata"]["name"] for item in items}
    for name in sorted(wanted - known):
        others = f", or name one of {', '.join(sorted(known))} {fitting.PLACE}" if known else ""
        yield Finding.amiss(check, f"there is no {kind} {name}", f"{MADE_BY[check]}{others}")
    if wanted <= known:
        yield Finding.well(check, ", ".join(sorted(wanted)))


def trainer_findings(here: Cluster, place: PlaceConfig) -> Iterator[Finding]:
    """Kubeflow Trainer is there, where a step asks for nodes."""
    from kubernetes.client import ApiException, CustomObjectsApi

    steps = _with_nodes(place)
    if not steps:
        return
    kind = f"{trainjobs.JOBS}.{trainjobs.GROUP}/{trainjobs.VERSION}"
    try:
        CustomObjectsApi(here.core.api_client).list_namespaced_custom_object(
            trainjobs.GROUP, trainjobs.VERSION, here.namespace, trainjobs.JOBS, limit=1
        )
    except ApiException as error:
        absent = error.status == cluster.NOT_FOUND
        text = f"the cluster has no {kind}" if absent else f"{kind} may not be listed: {error.reason}"
        remedy = f"install Kubeflow Trainer 2.1, or take `nodes` from {', '.join(steps)} {fitting.PLACE}"
        yield Finding.amiss(Check.TRAINER, text, remedy if absent else "bind the role medflow-client")
    else:
        yield Finding.well(Check.TRAINER, f"{kind}, for {', '.join(steps)}")


def _with_nodes(place: PlaceConfig) -> list[str]:
    return [name for name, asked in place.steps.items() if asked.nodes > 1]


def _shm(place: PlaceConfig) -> Iterator[Finding]:
    for step, asked in _asked(place):
        yield from fitting.shm_findings(step, asked)


def _asked(place: PlaceConfig) -> list[tuple[str, StepPlace]]:
    return [("orchestrator", place.orchestrator), *place.steps.items()]


def _plain(here: Cluster, ask: Callable[[], Any]) -> list[dict[str, Any]] | None:
    from kubernetes.client import ApiException

    try:
        items: list[dict[str, Any]] = here.core.api_client.sanitize_for_serialization(ask())["items"]
    except ApiException:
        return None
    return items

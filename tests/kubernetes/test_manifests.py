"""infra/kubernetes on a real API server: accepted without a word, the servers ready, and no right more than written."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from functools import cache

import pytest
from clusters import PLATFORM, ROOT, RUNS, SCRIPTS, Cluster, Servers
from kubernetes import client, config
from manifests import documents, rendered

ACCOUNTS = {
    "medflow-client": RUNS,
    "medflow-orchestrator": RUNS,
    "medflow-step": RUNS,
    "medflow-trainer": RUNS,
    "medflow-serving": RUNS,
    "zenml-server": PLATFORM,
    "mlflow-server": PLATFORM,
}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
#: What every account may ask: who it is, and what it may do.
FOR_ALL = {"authentication.k8s.io", "authorization.k8s.io"}
Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""


def _apply(cluster: Cluster, overlay: str, tag: str, *options: str) -> str:
    host = {"INGRESS_HOST": "zenml.test"} if overlay == "production" else {}
    done = cluster.run(SCRIPTS / "apply", overlay, *options, REGISTRY=cluster.registry, TAG=tag, **host)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("overlay", ["gpu", "production"])
def test_overlays_are_accepted(cluster: Cluster, servers: Servers, tag: str, overlay: str) -> None:
    lines = _apply(cluster, overlay, tag, "--dry-run=server").splitlines()
    assert len(lines) == len(rendered(overlay))
    assert all(line.endswith("serverside-applied (server dry run)") for line in lines)


def test_a_second_apply_changes_nothing(cluster: Cluster, servers: Servers, tag: str) -> None:
    before = _versions(cluster)
    _apply(cluster, "dev", tag)
    assert _versions(cluster) == before


def _versions(cluster: Cluster) -> dict[str, int]:
    """How often the wish for each object changed, as the API server counts."""
    kinds = "deployments,services,networkpolicies,poddisruptionbudgets,roles,rolebindings,resourcequotas,limitranges"
    items = [cluster.json("-n", each, "get", kinds)["items"] for each in (RUNS, PLATFORM)]
    return {
        f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}": (
            item["metadata"].get("generation") or item["metadata"]["resourceVersion"]
        )
        for several in items
        for item in several
        if item["kind"] != "ResourceQuota"  # its status moves with every pod
    }


def test_secrets_keep_their_values(cluster: Cluster, servers: Servers) -> None:
    done = cluster.run(SCRIPTS / "make-secrets", **cluster.store.environment)
    assert done.returncode == 0, done.stderr
    assert cluster.secret("zenml-server", "admin-password") == servers.password
    assert servers.password not in done.stdout + done.stderr
    for namespace in (RUNS, PLATFORM):
        labels = cluster.json("get", "namespace", namespace)["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_is_kept_is_what_this_cluster_says(cluster: Cluster) -> None:
    for overlay in ("dev", "gpu", "production"):
        assert documents(cluster.kubectl("kustomize", f"infra/kubernetes/overlays/{overlay}")) == rendered(overlay)
    kept = ROOT / "tests" / "schemas" / "kubernetes" / "schemas.json"
    before = kept.read_text()
    try:
        done = cluster.run(sys.executable, kept.with_name("cut.py"))
        assert done.returncode == 0, done.stderr
        assert kept.read_text() == before
    finally:
        kept.write_text(before)


def test_the_servers_answer(servers: Servers) -> None:
    with urllib.request.urlopen(f"{servers.zenml}/api/v1/info", timeout=10) as response:
        assert json.load(response)["database_type"] == "mysql"
    with urllib.request.urlopen(f"{servers.mlflow}/health", timeout=10) as response:
        assert response.read() == b"OK"


def test_a_token_outlives_the_server(cluster: Cluster, servers: Servers) -> None:
    token = _token(servers)
    cluster.kubectl("-n", PLATFORM, "rollout", "restart", "deployment/zenml-server")
    cluster.kubectl("-n", PLATFORM, "rollout", "status", "deployment/zenml-server", "--timeout", "300s")
    assert _user(servers, token) == "admin"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _user(servers, token[:-3] + "AAA")


def _token(servers: Servers) -> str:
    form = urllib.parse.urlencode({"username": servers.user, "password": servers.password}).encode()
    with urllib.request.urlopen(f"{servers.zenml}/api/v1/login", form, timeout=30) as response:
        return json.load(response)["access_token"]


def _user(servers: Servers, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{servers.zenml}/api/v1/current-user", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["name"]


def test_mlflow_keeps_files_in_the_object_store(cluster: Cluster, servers: Servers) -> None:
    code = f"""
import mlflow
mlflow.set_tracking_uri({servers.mlflow!r})
mlflow.set_experiment("test-manifests")
with mlflow.start_run() as run:
    mlflow.log_metric("auc", 0.5)
    mlflow.log_text("kept", "note.txt")
print("at", run.info.artifact_uri)
assert mlflow.get_run(run.info.run_id).data.metrics == {{"auc": 0.5}}
"""
    done = cluster.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    place = done.stdout.rpartition("at mlflow-artifacts:/")[2].strip()
    stored = cluster.store.client.get_object(Bucket="medflow", Key=f"mlflow/{place}/note.txt")
    assert stored["Body"].read() == b"kept"


# --- rights


@cache
def _known(cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """Every API group and resource that the server has, subresources included."""
    groups = json.loads(cluster.kubectl("get", "--raw", "/apis"))["groups"]
    paths = {"": "/api/v1"} | {each["name"]: f"/apis/{each['preferredVersion']['groupVersion']}" for each in groups}
    lists = {group: json.loads(cluster.kubectl("get", "--raw", path)) for group, path in paths.items()}
    return tuple(sorted({(group, each["name"]) for group, found in lists.items() for each in found["resources"]}))


def _written(account: str) -> set[Right]:
    """What the roles bound to an account in the dev overlay say."""
    everything = rendered("dev")
    roles = {(each["kind"], each["metadata"]["name"]): each for each in everything if each["kind"].endswith("Role")}
    bound = [
        roles[each["roleRef"]["kind"], each["roleRef"]["name"]]
        for each in everything
        if each["kind"].endswith("RoleBinding") and account in [subject["name"] for subject in each["subjects"]]
    ]
    return {
        (group, resource, verb)
        for role in bound
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def reviews(cluster: Cluster, servers: Servers) -> client.AuthorizationV1Api:
    """Where an administrator asks what another may do."""
    return client.AuthorizationV1Api(config.new_client_from_config(str(cluster.kubeconfig)))


def _allowed(reviews: client.AuthorizationV1Api, account: str, right: Right, namespace: str) -> bool:
    group, resource, verb = right
    name, _, subresource = resource.partition("/")
    attributes = client.V1ResourceAttributes(
        namespace=namespace, group=group, resource=name, subresource=subresource or None, verb=verb
    )
    home = ACCOUNTS[account]
    spec = client.V1SubjectAccessReviewSpec(
        user=f"system:serviceaccount:{home}:{account}",
        groups=["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"],
        resource_attributes=attributes,
    )
    review = reviews.create_subject_access_review(client.V1SubjectAccessReview(spec=spec))
    return review.status.allowed


@pytest.mark.parametrize("account", ACCOUNTS)
def test_every_right_left_out_is_denied(cluster: Cluster, reviews: client.AuthorizationV1Api, account: str) -> None:
    written = _written(account)
    asked = {(group, resource, verb) for group, resource in _known(cluster) for verb in VERBS if group not in FOR_ALL}
    assert written <= asked, "a role names what the server does not know"
    granted = {right for right in asked if _allowed(reviews, account, right, RUNS)}
    assert granted == written
    print(f"{account}: {len(granted)} rights granted, {len(asked - granted)} denied")


@pytest.mark.parametrize("account", ACCOUNTS)
@pytest.mark.parametrize("namespace", [PLATFORM, "kube-system"])
def test_no_account_reaches_beyond_its_namespace(
    reviews: client.AuthorizationV1Api, account: str, namespace: str
) -> None:
    resources = ("pods", "secrets", "configmaps", "jobs", "deployments", "serviceaccounts")
    groups = {"jobs": "batch", "deployments": "apps"}
    asked = [(groups.get(resource, ""), resource, verb) for resource in resources for verb in VERBS]
    assert [right for right in asked if _allowed(reviews, account, right, namespace)] == []


@pytest.mark.parametrize(
    ("account", "words"),
    [
        ("medflow-step", ("get", "pods")),
        ("medflow-step", ("get", "secret", "medflow-store")),
        ("medflow-serving", ("get", "pods")),
        ("medflow-trainer", ("get", "secret", "medflow-store")),
        ("medflow-trainer", ("run", "shell", "--image", "busybox")),
        ("medflow-trainer", ("delete", "job", "any")),
        ("medflow-orchestrator", ("get", "secret", "medflow-store")),
        ("medflow-orchestrator", ("run", "shell", "--image", "busybox")),
        ("medflow-orchestrator", ("delete", "pod", "any")),
        ("medflow-client", ("get", "secret", "medflow-store")),
        (
            "medflow-client",
            ("create", "--raw", f"/api/v1/namespaces/{RUNS}/pods/any/exec?command=true", "-f", "/dev/null"),
        ),
        ("medflow-client", ("create", "serviceaccount", "more")),
        ("medflow-client", ("run", "shell", "--image", "busybox")),
        ("medflow-client", ("get", "pod", "any")),
        ("medflow-client", ("delete", "pod", "any")),
        ("medflow-client", ("get", "--raw", f"/api/v1/namespaces/{RUNS}/pods?watch=true&timeoutSeconds=1")),
        ("medflow-client", ("get", "--raw", f"/api/v1/namespaces/{RUNS}/events?watch=true&timeoutSeconds=1")),
        ("medflow-client", ("get", "--raw", f"/apis/batch/v1/namespaces/{RUNS}/jobs?watch=true&timeoutSeconds=1")),
        ("medflow-client", ("get", "resourcequota", "medflow")),
        ("medflow-client", ("get", "limitranges")),
        ("medflow-client", ("get", "serviceaccounts")),
        ("medflow-client", ("get", "node", "any")),
        ("medflow-client", ("get", "priorityclass", "medflow-step")),
        ("medflow-client", ("delete", "resourcequota", "medflow")),
        ("medflow-client", ("create", "rolebinding", "more", "--role", "medflow-orchestrator", "--user", "me")),
        ("medflow-client", ("-n", PLATFORM, "get", "secret", "zenml-server")),
    ],
)
def test_the_call_itself_is_refused(cluster: Cluster, servers: Servers, account: str, words: tuple[str, ...]) -> None:
    who = f"system:serviceaccount:{ACCOUNTS[account]}:{account}"
    done = cluster.run("kubectl", "-n", RUNS, "--as", who, *words)
    assert done.returncode != 0
    assert "forbidden" in done.stderr.lower(), done.stderr


# --- what a pod may be


@pytest.mark.parametrize("namespace", [RUNS, PLATFORM])
@pytest.mark.parametrize(
    "spec",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]},
        {"securityContext": {"runAsUser": 0}},
    ],
)
def test_pod_security_refuses(cluster: Cluster, servers: Servers, namespace: str, spec: dict) -> None:
    done = cluster.run("kubectl", "apply", "--dry-run=server", "-f", "-", stdin=json.dumps(_pod(namespace, **spec)))
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted' in done.stderr


def test_a_pod_that_asks_for_nothing_gets_the_defaults(cluster: Cluster, servers: Servers) -> None:
    text = json.dumps(_pod(RUNS))
    made = json.loads(cluster.kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=text))
    assert made["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"memory": "2Gi"},
    }


def test_the_quota_refuses_what_is_too_much(cluster: Cluster, servers: Servers) -> None:
    pod = _pod(RUNS)
    pod["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "33"}}
    done = cluster.run("kubectl", "apply", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    assert done.returncode != 0
    assert "exceeded quota: medflow" in done.stderr


def _pod(namespace: str, **spec: object) -> dict:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    base = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": "busybox", "securityContext": security}],
    }
    metadata = {"generateName": "test-", "name": "test-manifests", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**base, **spec}}

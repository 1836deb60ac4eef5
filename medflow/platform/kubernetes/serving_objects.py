"""What a model in service is in a cluster, rendered from a release and nothing else.

The same release gives the same objects, so one can be put back as it was. Keys are Kubernetes' own.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from medflow.config.sections.place import ServingPlace
from medflow.errors import PlatformError
from medflow.platform.kubernetes.readback import quantity
from medflow.platform.kubernetes.settings import CONTAINER_SECURITY, POD_SECURITY
from medflow.records import Record

Document = dict[str, Any]
MANAGER = "medflow"
"""Who owns the fields that are applied here."""
MODEL_LABEL = "medflow.dev/model"
RELEASE, BEFORE = "medflow.dev/release", "medflow.dev/before"
COMPONENT = {"app.kubernetes.io/component": "serving"}
PORT = 3000
"""Where the serving image listens."""
PRIORITY = "medflow-serving"
SCRATCH = "256Mi"
LEAVING = "/tmp/leaving"
#: Those of medflow.door, which is not imported: it stands on the web framework.
LEAVING_VARIABLE, IMAGE_BYTES_VARIABLE = "MEDFLOW_LEAVING", "MEDFLOW_IMAGE_BYTES"
#: What a service takes apart from its images: two processes of 110 and of 140 to 220 MiB.
BASE_BYTES = 384 * 2**20
#: With less it could not hold the largest upload and decode a radiograph of 10 million pixels.
LEAST_IMAGE_BYTES = 96 * 2**20
#: Uploads have 30 s and answers as long; what began before a pod left may end.
ANSWER_SECONDS = 60
START_SECONDS = 120
MAX_NAME = 63


class Served(Record):
    """Which model is served, by content."""

    model: str
    version: str
    """Its number in the registry of models."""
    bento: str
    """Tag of the Bento: the model and 12 digits of its content."""
    package_digest: str
    bundle_digest: str
    image: str
    """With tag and digest."""
    base_digest: str
    """Of the serving image below."""

    @property
    def ref(self) -> str:
        return f"{self.model}@{self.version}"


class Release(Record):
    """A model with the settings that it is served by: all that the objects are made from."""

    served: Served
    settings: ServingPlace
    account: str
    pull_secrets: tuple[str, ...] = ()


def object_name(model: str) -> str:
    """What a model's objects are called: a DNS label, which a dataset's name with its underscores is not."""
    return f"model-{re.sub(r'[^a-z0-9]+', '-', model.lower()).strip('-')}"[:MAX_NAME].rstrip("-")


def labels_of(model: str) -> dict[str, str]:
    """The labels that all objects of a model have, and by which its pods are selected."""
    return {MODEL_LABEL: model, **COMPONENT}


def rendered(release: Release, namespace: str, *, replicas: int, before: Release | None) -> list[Document]:
    """Every object of a model in service. ``before`` is what served until now, kept to be put back."""
    return [
        _network_policy(release, namespace),
        _deployment(release, namespace, replicas, before),
        _service(release, namespace),
        _autoscaler(release, namespace),
        _budget(release, namespace),
    ]


def kinds() -> tuple[tuple[str, str], ...]:
    """API version and kind of what ``rendered`` makes, in the order in which it is taken away."""
    return (
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("policy/v1", "PodDisruptionBudget"),
        ("v1", "Service"),
        ("apps/v1", "Deployment"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    )


def release_in(annotations: dict[str, str], key: str) -> Release | None:
    """A release that an object was annotated with. Raises PlatformError where it cannot be read."""
    text = annotations.get(key)
    try:
        return Release.model_validate_json(text) if text else None
    except ValidationError as error:
        raise PlatformError(
            f"the annotation {key} is of another version of medflow",
            hint="use that version, or `medflow undeploy` the model and deploy it again",
        ) from error


def _object(api: str, kind: str, release: Release, namespace: str, spec: Document) -> Document:
    model = release.served.model
    labels = {"app.kubernetes.io/name": object_name(model), "app.kubernetes.io/managed-by": MANAGER}
    metadata = {"name": object_name(model), "namespace": namespace, "labels": {**labels, **labels_of(model)}}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _deployment(release: Release, namespace: str, replicas: int, before: Release | None) -> Document:
    spec = {
        "replicas": replicas,
        # A new pod answers before an old one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "progressDeadlineSeconds": release.settings.timeout,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": labels_of(release.served.model)},
        "template": _template(release),
    }
    made = _object("apps/v1", "Deployment", release, namespace, spec)
    kept = {RELEASE: _text(release)} | ({BEFORE: _text(before)} if before else {})
    made["metadata"]["annotations"] = kept
    return made


def _text(release: Release) -> str:
    return json.dumps(release.model_dump(mode="json"), sort_keys=True)


def _template(release: Release) -> Document:
    served, settings = release.served, release.settings
    name = object_name(served.model)
    facts = served.model_dump(mode="json", exclude={"image"})
    spec = {
        "serviceAccountName": release.account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "imagePullSecrets": [{"name": secret} for secret in release.pull_secrets],
        "priorityClassName": PRIORITY,
        "terminationGracePeriodSeconds": settings.drain + ANSWER_SECONDS,
        "securityContext": POD_SECURITY,
        "nodeSelector": settings.node_selector,
        "tolerations": [item.model_dump(mode="json", exclude_none=True) for item in settings.tolerations],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels_of(served.model)},
            }
        ],
        "containers": [_container(release)],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": SCRATCH}}],
    }
    labels = {"app.kubernetes.io/name": name, **labels_of(served.model)}
    annotations = {f"medflow.dev/{key.replace('_', '-')}": str(value) for key, value in facts.items()}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def _container(release: Release) -> Document:
    settings = release.settings
    return {
        "name": "model",
        "image": release.served.image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {
            "requests": {"cpu": f"{round(settings.cpu * 1000)}m", "memory": settings.memory},
            "limits": {"memory": settings.memory},
        },
        # Up: the process answers. Ready: the golden set came out as it should. A busy service is given time.
        "startupProbe": _probe("/livez", period=1, failures=START_SECONDS),
        "readinessProbe": _probe("/readyz", period=2, failures=3),
        "livenessProbe": _probe("/livez", period=10, failures=6),
        # Those who send requests hear a little later that a pod leaves; meanwhile no connection is kept open for them.
        "env": [
            {"name": LEAVING_VARIABLE, "value": LEAVING},
            {"name": IMAGE_BYTES_VARIABLE, "value": str(_image_bytes(settings.memory))},
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", f"touch {LEAVING}; sleep {settings.drain}"]}}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }


def _image_bytes(memory: str) -> int:
    """How much of a pod's memory uploads and the decoding of images may take."""
    return max(LEAST_IMAGE_BYTES, int(quantity(memory) or 0) - BASE_BYTES)


def _probe(path: str, *, period: int, failures: int) -> Document:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _service(release: Release, namespace: str) -> Document:
    ports = [{"name": "http", "port": release.settings.port, "targetPort": "http"}]
    spec = {"selector": labels_of(release.served.model), "ports": ports}
    return _object("v1", "Service", release, namespace, spec)


def _autoscaler(release: Release, namespace: str) -> Document:
    least, most = release.settings.replicas
    load = {"type": "Utilization", "averageUtilization": release.settings.load}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": object_name(release.served.model)},
        "minReplicas": least,
        "maxReplicas": most,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": load}}],
    }
    return _object("autoscaling/v2", "HorizontalPodAutoscaler", release, namespace, spec)


def _budget(release: Release, namespace: str) -> Document:
    # Not `minAvailable`: with a single pod its node could never be emptied.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": labels_of(release.served.model)}}
    return _object("policy/v1", "PodDisruptionBudget", release, namespace, spec)


def _network_policy(release: Release, namespace: str) -> Document:
    dns = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    spec = {
        "podSelector": {"matchLabels": labels_of(release.served.model)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [{"namespaceSelector": {"matchLabels": release.settings.reached_from}}],
                "ports": [{"protocol": "TCP", "port": PORT}],
            }
        ],
        "egress": [{"to": [dns], "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", release, namespace, spec)

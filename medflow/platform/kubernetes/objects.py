"""Objects of a namespace by Kubernetes' API: read, applied server-side, deleted. Plain JSON in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from medflow.errors import PlatformError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException
    from kubernetes.dynamic import DynamicClient

    from medflow.platform.kubernetes.cluster import Cluster

Document = dict[str, Any]
NOT_FOUND = 404
DENIED = (401, 403)


@dataclass(frozen=True)
class Objects:
    """The objects of a namespace. Every method raises PlatformError where the API refuses."""

    api: ApiClient
    namespace: str
    manager: str
    """Field manager under which objects are applied."""

    @cached_property
    def _client(self) -> DynamicClient:
        from kubernetes.dynamic import DynamicClient

        return DynamicClient(self.api)

    def get(self, api_version: str, kind: str, name: str) -> Document | None:
        """One object; None where there is none."""
        return self._unless_absent("get", api_version, kind, name=name)

    def listed(self, api_version: str, kind: str, labels: dict[str, str]) -> list[Document]:
        """The objects that have these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return list(self._ask("get", api_version, kind, label_selector=selector)["items"])

    def apply(self, document: Document) -> None:
        """Make an object what ``document`` says, in the fields that it names; fields of ours that it lacks go."""
        words = {"body": document, "name": document["metadata"]["name"], "field_manager": self.manager}
        self._ask("server_side_apply", document["apiVersion"], document["kind"], **words, force_conflicts=True)

    def delete(self, api_version: str, kind: str, name: str) -> bool:
        """False where it was gone already."""
        words = {"body": {"propagationPolicy": "Background"}, "name": name}
        return self._unless_absent("delete", api_version, kind, **words) is not None

    def _ask(self, verb: str, api_version: str, kind: str, **words: Any) -> Document:
        from kubernetes.client import ApiException

        try:
            return self._send(verb, api_version, kind, words)
        except ApiException as error:
            raise refused(verb, kind, error) from error

    def _unless_absent(self, verb: str, api_version: str, kind: str, **words: Any) -> Document | None:
        from kubernetes.client import ApiException

        try:
            return self._send(verb, api_version, kind, words)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise refused(verb, kind, error) from error

    def _send(self, verb: str, api_version: str, kind: str, words: dict[str, Any]) -> Document:
        from urllib3.exceptions import HTTPError

        try:
            resource = self._client.resources.get(api_version=api_version, kind=kind)
            sent: Document = getattr(resource, verb)(namespace=self.namespace, **words).to_dict()
            return sent
        except HTTPError as error:
            raise PlatformError(
                f"the cluster's API does not answer: {type(error).__name__}", hint="try again; `kubectl get nodes`"
            ) from error


def objects_of(cluster: Cluster, manager: str) -> Objects:
    """Those of a cluster's namespace."""
    return Objects(cluster.core.api_client, cluster.namespace, manager)


def refused(verb: str, kind: str, error: ApiException) -> PlatformError:
    """What the API server said, in one line."""
    try:
        said = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        said = f"status {error.status}"
    hint = (
        "the role medflow-deployer has this right" if error.status in DENIED else "the words are the API server's own"
    )
    return PlatformError(f"the cluster refuses to {verb.replace('_', ' ')} a {kind}: {said}", hint=hint)

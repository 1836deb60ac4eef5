"""What a cluster run is made of, `infra/stacks/*.yaml`: addresses and names. Credentials are named, never written.

A value may hold ``${NAME}``, which is taken from the environment.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medflow.config.sections.base import Section


class ClusterConfig(Section):
    context: str
    """A context of the kubeconfig."""
    namespace: str = "medflow"
    """Where the pods run."""
    orchestrator_account: str = "medflow-orchestrator"
    """Service account of the pod that starts the steps."""
    step_account: str = "medflow-step"
    """Service account of the steps; it needs no right at all."""
    serving_account: str = "medflow-serving"
    """Service account of models in service; it needs no right at all."""
    trainer_account: str = "medflow-trainer"
    """Service account of a step that trains on several nodes: it starts them, and may do nothing else."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets with which images are pulled."""


class StoreConfig(Section):
    uri: str = Field(pattern=r"^s3://[^/]+(/.*)?$")
    """Bucket, and a folder in it where wanted."""
    endpoint: str | None = Field(None, pattern=r"^https?://")
    """Address of an S3-compatible server; None: Amazon's. It must be valid here and in the pods."""
    region: str = "us-east-1"
    key_variable: str = "AWS_ACCESS_KEY_ID"
    """Environment variable that holds the key when the stack is applied."""
    secret_variable: str = "AWS_SECRET_ACCESS_KEY"
    """Environment variable that holds the secret."""


class MlflowConfig(Section):
    uri: str = Field(pattern=r"^https?://")
    """Address of the MLflow server, valid here and in the pods."""
    token_variable: str | None = None
    """Environment variable that holds the server's token when the stack is applied; None: the server asks for none."""


ImageWithTag = Annotated[str, Field(pattern=r"^[^\s:]+(:[0-9]+)?(/[^\s:]+)+(:[^\s:/]+|@sha256:[0-9a-f]{64})$")]


class StackConfig(Section):
    server: str = Field(pattern=r"^https?://")
    """Address of the ZenML server, valid here and in the pods. Credentials: ZENML_STORE_API_KEY in the environment."""
    cluster: ClusterConfig
    image: ImageWithTag
    """The step image with its tag, from `make images`. A tag is never used for another image."""
    serving_image: ImageWithTag | None = None
    """What models are served in. None: `medflow-serving` beside `medflow-step`, of the same tag (`make images`)."""
    registry: str
    """Host and port of the container registry, and a folder in it where wanted."""
    store: StoreConfig
    mlflow: MlflowConfig

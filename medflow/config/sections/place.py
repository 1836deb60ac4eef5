"""Where a run goes, `configs/on/*.yaml`: how much of a cluster each step gets. Never what it learns; in no cache key.

The meaning of each setting is Kubernetes' own; on this machine they are not used.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Positive, Section

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
"""Bytes as Kubernetes writes them: 512Mi, 8Gi."""

DEFAULT = "default"


class Toleration(Section):
    """A taint of nodes that the pod puts up with."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class StepPlace(Section):
    cpu: Positive = 1.0
    """Cores that are reserved; more are used where they are free."""
    memory: Quantity = "2Gi"
    """Bytes that are reserved, and the limit at which the container is ended (OOMKilled)."""
    gpu: int = Field(0, ge=0)
    """Whole GPUs (`nvidia.com/gpu`)."""
    shm: Quantity | None = None
    """Size of /dev/shm, which loaders with worker processes need; counts towards `memory`. None: 64 MiB."""
    scratch: Quantity = "10Gi"
    """Size of /tmp, the only folder that a step may write to."""
    retries: int = Field(2, ge=0, le=10)
    """How often a step starts anew when its pod was evicted, deleted or killed, or failed; never after OOMKilled."""
    timeout: int = Field(86_400, ge=30)
    """Seconds after which a step is ended, time spent waiting for a node included."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the node must have."""
    tolerations: tuple[Toleration, ...] = ()
    secrets: tuple[str, ...] = ()
    """Secrets of the namespace whose keys become environment variables, such as Kaggle's, where they are there."""
    priority: str | None = None
    """A priority class."""


class PlaceConfig(Section):
    stack: str
    """A stack of infra/stacks, or the local one."""
    parallel: int | None = Field(None, ge=1)
    """Step pods at a time; None: as many as the graph allows."""
    keep: int = Field(3600, ge=60)
    """Seconds for which finished jobs and pods stay in the cluster; logs and events are kept with the run for good."""
    orchestrator: StepPlace = StepPlace(cpu=0.1, memory="1Gi", retries=3, timeout=7 * 86_400)
    """The pod that starts the others; its `timeout` is that of the whole run."""
    steps: dict[str, StepPlace] = Field(default_factory=lambda: {DEFAULT: StepPlace()})
    """By name: a step (`train`), one of its uses (`train_resnet18`), or `default`, which completes the others."""

    @model_validator(mode="after")
    def _has_default(self) -> PlaceConfig:
        if DEFAULT not in self.steps:
            raise ValueError(f"steps: expected an entry `{DEFAULT}` for every step that is not named")
        return self

    def of_step(self, use: str, step: str) -> StepPlace:
        """The settings for one use of a step, such as train_resnet18 of train."""
        return self.steps.get(use) or self.steps.get(step) or self.steps[DEFAULT]

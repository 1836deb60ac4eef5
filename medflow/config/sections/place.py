"""Where a run goes, `configs/on/*.yaml`: how much of a cluster each step gets. Never what it learns; in no cache key.

The meaning of each setting is Kubernetes' own; on this machine they are not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Positive, Section

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
"""Bytes as Kubernetes writes them: 512Mi, 8Gi."""

DEFAULT = "default"
#: Steps that read sources.
READING = ("resolve", "ingest", "ingest_shard")
#: Steps that train, and so may have nodes; `train_<model>` too.
LEARNING = ("train", "prune")
#: Every step of a pipeline.
STEPS = (
    "choose", "evaluate", "evaluate_incumbent", "export_onnx", "incumbent", "ingest", "ingest_shard", "merge_shards",
    "normalize", "package", "promote", "prune", "quantize", "record", "resolve", "select", "split", "train", "tune",
    "validate",
)  # fmt: skip
#: What the uses of a step are called, where there are several; a training and its evaluation by the model.
USES = re.compile(r"train_.+|evaluate_(test|val_.+)|ingest_shard_[0-9]+|export_(pruned_)?onnx|quantize_(pruned_)?int8")
#: Cores of a step that waits for its nodes.
WAITING_CPU = 0.25


class Toleration(Section):
    """A taint of nodes that the pod puts up with."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Volume(Section):
    """A volume of the cluster that holds images, such as one of a file server; only read."""

    claim: str
    """A PersistentVolumeClaim of the namespace."""
    path: str = Field(pattern=r"^/[^\s:]*[^\s:/]$")
    """Folder where pods see it."""


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
    volumes: tuple[Volume, ...] = ()
    """For the steps that read a source: `resolve`, `ingest` and `ingest_shard`. A source, or its metadata file, with a
    path below one of them is read there and not uploaded."""
    priority: str | None = None
    """A priority class: which pods go first where the cluster is full. None: the cluster's default."""
    runtime_class: str | None = None
    """A runtime class, such as NVIDIA's where nodes do not run every pod under it. None: the nodes' own runtime."""
    nodes: int = Field(1, ge=1, le=64)
    """Pods that share the `train.devices` processes of a training, by Kubeflow Trainer; for `train` and `prune`.
    The other settings are then each pod's; the step's own waits for them, with the same memory and without GPU. What is
    learnt depends on `train.devices` alone."""

    def waiting(self) -> StepPlace:
        """What the step's own pod gets: where others train for it, it needs neither their GPUs nor their cores."""
        if self.nodes == 1:
            return self
        return self.model_copy(update={"gpu": 0, "cpu": min(self.cpu, WAITING_CPU), "runtime_class": None})


class ServingPlace(Section):
    """A model in service: how many pods, how large, who may ask them."""

    replicas: tuple[int, int] = (2, 4)
    """Pods at least and at most; in between load decides. A single one is away for a while when its node is emptied."""
    cpu: Positive = 0.5
    """Cores that are reserved for each pod; more are used where they are free."""
    memory: Quantity = "1Gi"
    """Bytes that are reserved for each pod, and the limit at which it is ended (OOMKilled): 1Gi holds an
    image of 100 million pixels in a plain format; what would take more is refused, what takes less shares it."""
    load: int = Field(70, ge=10, le=100)
    """Per cent of `cpu` that pods use on average before another is started."""
    port: int = Field(80, ge=1, le=65535)
    """Port of the Service."""
    timeout: int = Field(300, ge=30)
    """Seconds for new pods to become ready; after that the release before is put back."""
    drain: int = Field(15, ge=6, le=300)
    """Seconds that a pod goes on answering after it has left the Service; idle connections are closed after 5."""
    reached_from: dict[str, str] = Field(default_factory=lambda: {"medflow.dev/reaches-models": "true"}, min_length=1)
    """Labels of the namespaces whose pods may ask: an ingress controller's, an application's."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that the pods put up with."""

    @model_validator(mode="after")
    def _in_order(self) -> ServingPlace:
        low, high = self.replicas
        if not 1 <= low <= high:
            raise ValueError(f"replicas: expected [least, most] with 1 or more, found [{low}, {high}]")
        return self


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

    serving: ServingPlace = ServingPlace()
    """What `medflow deploy` starts."""

    @model_validator(mode="after")
    def _has_default(self) -> PlaceConfig:
        if DEFAULT not in self.steps:
            raise ValueError(f"steps: expected an entry `{DEFAULT}` for every step that is not named")
        return self

    @model_validator(mode="after")
    def _only_training_has_nodes(self) -> PlaceConfig:
        for name, step in self.steps.items():
            if step.nodes > 1 and name not in LEARNING and not name.startswith(f"{LEARNING[0]}_"):
                raise ValueError(f"steps.{name}.nodes: only {' and '.join(LEARNING)} can share work among nodes")
        return self

    def unknown_steps(self) -> list[str]:
        """Entries that are for no step, nor for a use of one."""
        return [name for name in self.steps if name not in (DEFAULT, *STEPS) and not USES.fullmatch(name)]

    def on_volume(self, path: str) -> bool:
        """Whether a path is one of a volume that every step which reads sources has."""
        mounts = [{volume.path for volume in self.of_step(step, step).volumes} for step in READING]
        return any(PurePosixPath(path).is_relative_to(mount) for mount in set.intersection(*mounts))

    def of_steps(self, uses: Mapping[str, str]) -> dict[str, StepPlace]:
        """The settings for each use of a step, given by use and step."""
        return {use: self.of_step(use, step) for use, step in uses.items()}

    def of_step(self, use: str, step: str) -> StepPlace:
        """The settings for one use of a step, such as train_resnet18 of train."""
        return self.steps.get(use) or self.steps.get(step) or self.steps[DEFAULT]

"""From a place's settings to ZenML's: which image, how large a pod, how long, how often.

ZenML ignores `ResourceSettings` for these pods and drops pod settings that it does not know without a word, so what is
written here is compared with the pods that come of it (`readback`). Nothing of it is in a cache key.
Keys are ZenML's own snake_case, and below them Kubernetes' CamelCase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medflow.config.sections import RunConfig
from medflow.config.sections.place import PlaceConfig, StepPlace, Volume
from medflow.config.sections.stack import ClusterConfig, StackConfig
from medflow.errors import ConfigError

#: Under this name in a step's ``extra``, for `readback` in the cluster.
ASKED = "place"
#: Likewise, where a step has nodes: what each of them gets.
NODE = "node"
#: On the pods of a step that starts nodes, for its network policy.
STARTS_NODES = {"medflow.dev/starts": "nodes"}
SHM = "/dev/shm"
SCRATCH = "/tmp"
GPU = "nvidia.com/gpu"
#: The user of the step image.
USER = 1000
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
#: ZenML looks at a step's job every three seconds otherwise, which many a step of a small dataset does not take.
LOOK_SECONDS = 1.0
#: Not ErrImagePull: the first try may fail for a moment, and is repeated.
HOPELESS = ("InvalidImageName", "ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError")


def docker(stack: StackConfig) -> dict[str, Any]:
    """The given image as it is, with the code in it."""
    return {
        "parent_image": stack.image,
        "skip_build": True,
        "install_stack_requirements": False,
        "allow_download_from_artifact_store": False,
        "allow_download_from_code_repository": False,
    }


def of_run(place: PlaceConfig, stack: StackConfig) -> dict[str, Any]:
    """Settings of the pipeline: those of the orchestrator's pod, and what all steps share."""
    pod = pod_settings(place.orchestrator, stack.cluster)
    pod["env"].append({"name": "ZENML_LOGGING_VERBOSITY", "value": "INFO"})
    return {
        "docker": docker(stack),
        "orchestrator": {
            "synchronous": False,
            "orchestrator_pod_settings": pod,
            "orchestrator_job_backoff_limit": place.orchestrator.retries,
            "active_deadline_seconds": place.orchestrator.timeout,
            "ttl_seconds_after_finished": place.keep,
            "max_parallelism": place.parallel,
            "job_monitoring_interval": LOOK_SECONDS,
            "fail_on_container_waiting_reasons": list(HOPELESS),
        },
    }


def of_steps(place: PlaceConfig, uses: Mapping[str, str], stack: StackConfig) -> dict[str, dict[str, Any]]:
    """Settings of each use of a step. ``uses`` maps one, such as train_resnet18, to its step, train."""
    return {use: _of_step(place.of_step(use, step), place, stack) for use, step in uses.items()}


def _of_step(asked: StepPlace, place: PlaceConfig, stack: StackConfig) -> dict[str, Any]:
    own = asked.waiting()
    orchestrator: dict[str, Any] = {
        "synchronous": False,
        "pod_settings": pod_settings(own, stack.cluster),
        "active_deadline_seconds": asked.timeout,
        "ttl_seconds_after_finished": place.keep,
        "fail_on_container_waiting_reasons": list(HOPELESS),
    }
    extra = {ASKED: own.model_dump(mode="json")}
    if asked.nodes > 1:
        orchestrator["pod_settings"]["labels"] = STARTS_NODES
        orchestrator["step_pod_service_account_name"] = stack.cluster.trainer_account
        extra[NODE] = asked.model_dump(mode="json")
    settings: dict[str, Any] = {"settings": {"orchestrator": orchestrator}, "extra": extra}
    if asked.retries:
        settings["retry"] = {"max_retries": asked.retries}
    return settings


def check_nodes(place: PlaceConfig, config: RunConfig) -> None:
    """Raises ConfigError where a place's nodes cannot share the processes of a run's trainings evenly."""
    asked = {"train": config.train.devices, **({"prune": config.train.devices} if config.prune.enabled else {})}
    uses = [(f"train_{model.key}", "train") for model in config.models] + [("prune", "prune")]
    for use, step in uses:
        nodes = place.of_step(use, step).nodes
        if step in asked and asked[step] % nodes:
            raise ConfigError(
                f"{use}: {nodes} nodes cannot share train.devices={asked[step]} evenly",
                hint=f"set train.devices (`--devices`) to a multiple of {nodes}, or `nodes` in the place's YAML",
            )


def pod_settings(asked: StepPlace, cluster: ClusterConfig) -> dict[str, Any]:
    """One pod: its size, where it may run, and what Pod Security `restricted` asks for."""
    named = {"priority_class_name": asked.priority, "runtime_class_name": asked.runtime_class}
    spec = {"security_context": POD_SECURITY, **{key: value for key, value in named.items() if value}}
    return {
        "resources": resources(asked),
        "node_selectors": asked.node_selector,
        "tolerations": [item.model_dump(mode="json", exclude_none=True) for item in asked.tolerations],
        "volumes": [*({"name": name, "emptyDir": folder} for name, _, folder in _folders(asked)), *_claims(asked)],
        "volume_mounts": [
            *({"name": name, "mountPath": path} for name, path, _ in _folders(asked)),
            *({"name": name, "mountPath": volume.path, "readOnly": True} for name, volume in _sources(asked)),
        ],
        # What a killed pod had said is stored up to the last second.
        "env": [{"name": "ZENML_LOGS_OTEL_SCHEDULE_DELAY_MILLIS", "value": "1000"}],
        "env_from": [{"secretRef": {"name": name, "optional": True}} for name in asked.secrets],
        "image_pull_secrets": list(cluster.pull_secrets),
        "container_security_context": CONTAINER_SECURITY,
        "additional_pod_spec_args": spec,
    }


def classes(asked: StepPlace) -> dict[str, str]:
    """What else a pod's spec names, for pods that ZenML does not make: its priority, and what it runs under."""
    named = {"priorityClassName": asked.priority, "runtimeClassName": asked.runtime_class}
    return {key: value for key, value in named.items() if value}


def resources(asked: StepPlace) -> dict[str, dict[str, str]]:
    """Kubernetes' requests and limits. Memory is reserved in full, cores are reserved and may be exceeded."""
    gpu = {GPU: str(asked.gpu)} if asked.gpu else {}
    return {
        "requests": {"cpu": f"{round(asked.cpu * 1000)}m", "memory": asked.memory, **gpu},
        "limits": {"memory": asked.memory, **gpu},
    }


def _folders(asked: StepPlace) -> list[tuple[str, str, dict[str, str]]]:
    found = [("scratch", SCRATCH, {"sizeLimit": asked.scratch})]
    if asked.shm:
        found.append(("shm", SHM, {"medium": "Memory", "sizeLimit": asked.shm}))
    return found


def _claims(asked: StepPlace) -> list[dict[str, Any]]:
    return [
        {"name": name, "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": True}}
        for name, volume in _sources(asked)
    ]


def _sources(asked: StepPlace) -> list[tuple[str, Volume]]:
    return [(f"source-{number}", volume) for number, volume in enumerate(asked.volumes)]

"""A ZenML orchestrator for tests: each step is a process of its own, with an empty folder and nothing shared.

What a pod would have is all that a step gets: the ZenML store, the artifact store, the installed code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.orchestrators import BaseOrchestrator, BaseOrchestratorConfig, BaseOrchestratorFlavor

RUN_VARIABLE = "TEST_ORCHESTRATOR_RUN_ID"
#: A step of this name is killed with SIGKILL as soon as its first checkpoint is in the store.
KILL_VARIABLE = "TEST_KILL_STEP"
#: How many steps run side by side, each once those before it are done.
PARALLEL_VARIABLE = "TEST_PARALLEL"
SECONDS = 600


class LightEntrypoint(StepEntrypointConfiguration):
    """Without ZenML's imports of everything that is installed, which take longer than most steps."""

    def run(self) -> None:
        from medflow.platform import stack

        stack.limit_integrations()
        super().run()


class ProcessOrchestrator(BaseOrchestrator):
    def get_orchestrator_run_id(self) -> str:
        return os.environ[RUN_VARIABLE]

    def submit_pipeline(self, snapshot, stack, base_environment, step_environments, placeholder_run=None) -> Any:
        run_id, left = str(placeholder_run.id), dict(snapshot.step_configurations)

        def run(name: str) -> None:
            environment = {**os.environ, **step_environments[name], RUN_VARIABLE: run_id}
            code = _run(LightEntrypoint, name, snapshot.id, environment)
            if code:
                raise RuntimeError(f"step {name} ended with exit code {code}")

        side_by_side = int(os.environ.get(PARALLEL_VARIABLE, "1"))
        with ThreadPoolExecutor(side_by_side) as pool:
            while left:
                ready = [name for name, step in left.items() if left.keys().isdisjoint(step.spec.upstream_steps)]
                list(pool.map(run, ready[:side_by_side]))
                for name in ready[:side_by_side]:
                    del left[name]
        return None


def _run(entrypoint: Any, name: str, snapshot_id: Any, environment: dict[str, str]) -> int:
    command = [*entrypoint.get_entrypoint_command()[1:], *entrypoint.get_entrypoint_arguments(
        step_name=name, snapshot_id=snapshot_id
    )]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="medflow-step-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        variables = {**environment, "HOME": str(home), "MEDFLOW_HOME": str(home / ".medflow"), "TMPDIR": folder}
        process = subprocess.Popen([sys.executable, *command], cwd=folder, env=variables)
        if environment.get(KILL_VARIABLE) == name:
            _kill_at_first_checkpoint(process)
        return process.wait(SECONDS)


def _kill_at_first_checkpoint(process: subprocess.Popen[bytes]) -> None:
    from s3 import has_checkpoint

    while process.poll() is None:
        if has_checkpoint():
            process.kill()
            return


class ProcessOrchestratorConfig(BaseOrchestratorConfig):
    @property
    def is_local(self) -> bool:
        return True


class ProcessOrchestratorFlavor(BaseOrchestratorFlavor):
    @property
    def name(self) -> str:
        return "processes"

    @property
    def config_class(self) -> type[BaseOrchestratorConfig]:
        return ProcessOrchestratorConfig

    @property
    def implementation_class(self) -> type[BaseOrchestrator]:
        return ProcessOrchestrator

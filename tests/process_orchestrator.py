"""A ZenML orchestrator for tests: each step is a process of its own, with an empty folder and nothing shared.

What a pod would have is all that a step gets: the ZenML store, the artifact store, the installed code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.orchestrators import BaseOrchestrator, BaseOrchestratorConfig, BaseOrchestratorFlavor

RUN_VARIABLE = "TEST_ORCHESTRATOR_RUN_ID"
#: A step of this name is killed with SIGKILL as soon as its first checkpoint is in the store.
KILL_VARIABLE = "TEST_KILL_STEP"
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
        run_id = str(placeholder_run.id)
        for name in snapshot.step_configurations:
            environment = {**os.environ, **step_environments[name], RUN_VARIABLE: run_id}
            code = _run(LightEntrypoint, name, snapshot.id, environment)
            if code:
                raise RuntimeError(f"step {name} ended with exit code {code}")
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

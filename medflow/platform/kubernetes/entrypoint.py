"""The program of a step's pod: ZenML's own, with medflow's cache check, and without imports that no step needs."""

from __future__ import annotations

import sys
import traceback

from zenml.entrypoints import entrypoint
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.utils import source_utils

from medflow.errors import MedflowError
from medflow.imports import ROOT
from medflow.platform import caching, stack
from medflow.progress import say

MODULE = "medflow.platform.kubernetes.entrypoint"


class StepEntrypoint(StepEntrypointConfiguration):
    """Runs one step."""

    @classmethod
    def get_entrypoint_command(cls) -> list[str]:
        return ["python", "-m", MODULE]

    def run(self) -> None:
        with caching.checked_hits(say):
            super().run()


def prepare() -> None:
    """What every pod's program needs: the code's own folder as ZenML's source root, and few integrations."""
    stack.limit_integrations()
    source_utils.set_custom_source_root(str(ROOT))


def main() -> int:
    """Run the step that the arguments name; the exit code of the error's class where it raises one of medflow's."""
    prepare()
    try:
        entrypoint.main()
    except MedflowError as error:
        traceback.print_exception(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The program of a step's pod: ZenML's own, with medflow's cache check, and without imports that no step needs."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from zenml.entrypoints import entrypoint
from zenml.entrypoints.step_entrypoint_configuration import STEP_NAME_OPTION, StepEntrypointConfiguration
from zenml.utils import source_utils

from medflow.errors import MedflowError
from medflow.imports import ROOT
from medflow.platform import caching, learning, stack
from medflow.progress import say

if TYPE_CHECKING:
    from medflow.checkpoint import Checkpoints
    from medflow.config.sections import TrainConfig
    from medflow.fit import Data
    from medflow.models import Network
    from medflow.records import TrainingLog
    from medflow.tracking import Tracker

MODULE = "medflow.platform.kubernetes.entrypoint"


class StepEntrypoint(StepEntrypointConfiguration):
    """Runs one step."""

    @classmethod
    def get_entrypoint_command(cls) -> list[str]:
        return ["python", "-m", MODULE]

    def run(self) -> None:
        step = self.entrypoint_args[STEP_NAME_OPTION]
        # Where a step has nothing to say, its log would be empty: as one that was lost.
        say(f"{step} …")
        with caching.checked_hits(say):
            super().run()
        say(f"{step} done")


def prepare() -> None:
    """What every pod's program needs: the code's own folder as ZenML's source root, and few integrations."""
    stack.limit_integrations()
    source_utils.set_custom_source_root(str(ROOT))


def _learn(
    network: Network, data: Data, config: TrainConfig, *, tracker: Tracker, checkpoints: Checkpoints
) -> TrainingLog:
    """On as many nodes as the step's place asks for. Imported when a step trains: others need no torch."""
    from medflow.platform.kubernetes import nodes

    return nodes.fit(network, data, config, tracker=tracker, checkpoints=checkpoints)


def main() -> int:
    """Run the step that the arguments name; the exit code of the error's class where it raises one of medflow's."""
    prepare()
    learning.use(_learn)
    try:
        entrypoint.main()
    except MedflowError as error:
        traceback.print_exception(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Weights & Biases: one run a training, grouped by pipeline run; files below MEDFLOW_HOME/wandb.

Online with the key in WANDB_API_KEY, or WANDB_MODE=offline and `wandb sync` later. The key is read by the client from
the environment and never handled here.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from medflow.config.sections import WandbConfig
from medflow.errors import PlatformError
from medflow.home import home
from medflow.trackers import Ending, Offer, Sink, Value

INIT_SECONDS = 30.0


def offer(config: WandbConfig, dataset: str, run: str, name: str) -> Offer:
    """A run called ``name`` in the group ``run``; the project is the dataset's unless the config names another."""
    return Offer("Weights & Biases", lambda: _open(config, dataset, run, name))


def _open(config: WandbConfig, dataset: str, run: str, name: str) -> Sink:
    return Wandb(config, dataset, run, name)


class Wandb:
    """``Sink`` on a run of its own, so that two at a time do not meet in the client's global state.

    Raises PlatformError where the client would have to ask for a key.
    """

    def __init__(self, config: WandbConfig, dataset: str, run: str, name: str) -> None:
        if os.environ.get("WANDB_MODE", "online") == "online" and not os.environ.get("WANDB_API_KEY"):
            raise PlatformError("WANDB_API_KEY is not set", hint="set it, or set WANDB_MODE=offline")
        import wandb

        folder = home() / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.project or dataset,
            entity=config.entity,
            group=run,
            name=name,
            tags=list(config.tags),
            notes=config.notes,
            dir=str(folder),
            reinit="create_new",
            # No console, code or machine details: a step's output may name files of the hospital.
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS, silent=True, console="off", disable_git=True, save_code=False
            ),
        )

    def params(self, values: Mapping[str, Value]) -> None:
        self._run.config.update(dict(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def file(self, path: Path, folder: str) -> None:
        import wandb

        if path.suffix == ".png":
            self._run.log({f"{folder}/{path.stem}": wandb.Image(str(path))})
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def model(self, files: Sequence[Path], name: str) -> None:
        """An artifact of type `model`. Its files stay in the run's folder, where `wandb sync` finds them."""
        import wandb

        folder = Path(self._run.dir).parent / "model"
        folder.mkdir(parents=True, exist_ok=True)
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model")
        for path in files:
            # A copy of ours: the client's own would lie outside MEDFLOW_HOME.
            kept = shutil.copyfile(path, folder / path.name)
            artifact.add_file(str(kept), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def finish(self, ending: Ending) -> None:
        self._run.finish(exit_code=0 if ending == "FINISHED" else 1)

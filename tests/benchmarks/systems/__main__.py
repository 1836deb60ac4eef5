"""`make table-systems`: the five published systems on their generated twins, medflow beside each system's own recipe.

    python tests/benchmarks/systems [--minutes 2] [--seeds 0 1 2] [--only NAME ...] [--work DIR]

Same rows, same size, same time of training: each side has one core and one thread to itself, as many sides train at a
time as there are cores, and the epochs are planned by processor time, which is the wall time of a quiet core. Nothing
can be downloaded, so that both sides start from random weights; a published recipe that fine-tunes is slow from there,
so that it is run twice, at its published learning rates and at ten times these, and medflow is compared with the better
of the two, as judged on the test rows. What is finished is kept below --work and not done again, so that two hours may
be spent in pieces. Prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import queue
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import judge
import numpy as np
from material import Material, prepare
from pydantic import BaseModel

from medflow.config.reading import load
from medflow.config.sections import RunConfig
from medflow.records import HeadSpec, Predictions


@dataclass(frozen=True)
class System:
    title: str
    dataset: str
    peer: str
    size: int
    images: int
    overrides: tuple[str, ...]
    """On top of the shipped YAML: the same family at reduced width, and one stage for a start from random weights."""

    @property
    def name(self) -> str:
        return self.peer.removesuffix("_peer")


SCRATCH = ("model.pretrained=none", "train.lr=1e-3", "train.schedule=cosine", "train.patience=0", "train.warmup=0.1")
SYSTEMS = (
    System("1: UNet, two tasks", "covid_radiography", "unet_peer", 96, 800, (
        "model.channels=[8,16,32,64,128]", "model.features=16", "model.mask_hidden=8", "model.label_hidden=[64,32]",
        *SCRATCH, "train.lr=2e-3")),
    System("2: ResNet", "chest_xray_pneumonia", "resnet_peer", 96, 800, (
        "recipe=[scratch,radiograph]", "model.name=resnet18", *SCRATCH)),
    System("3: two stages", "lung_disease", "two_stage_peer", 96, 800, (
        "models=[{kind: timm, name: regnety_002, head_norm: layer, hidden: [128], head_dropout: [0.3, 0.25]}]",
        "recipe=[scratch,radiograph]", "train.label_smoothing=0.1", *SCRATCH)),
    System("4: SMP Unet", "ham10000", "smp_peer", 96, 800, (
        "model.encoder=resnet18", *SCRATCH)),
    System("5: dual path", "nih_chestxray14", "dense_peer", 64, 1200, (
        "recipe=[scratch,radiograph]", "model.encoder=resnet10t", "model.pyramid=64", *SCRATCH)),
)  # fmt: skip
SIDES = {"medflow": 1.0, "published": 1.0, "published_x10": 10.0}
"""What is trained, and by how much the learning rates of a published recipe are multiplied."""


class Side(BaseModel):
    """What one side said of one seed's test rows: what is kept on disk."""

    seconds: float
    """Wall time of training."""
    cpu: float
    """Seconds of processor time within it: how quiet the core was."""
    rows: str
    heads: tuple[HeadSpec, ...]
    image_id: list[str]
    group: list[str]
    probabilities: dict[str, list[list[float]]]
    targets: dict[str, list[list[float]]]
    mask_scores: dict[str, list[list[float]]]

    model_config = {"ser_json_inf_nan": "constants"}


@dataclass(frozen=True)
class Job:
    system: System
    seed: int
    side: str
    work: Path
    minutes: float

    @property
    def path(self) -> Path:
        return self.work / f"{self.system.name}_{self.seed}_{self.side}_{self.minutes:g}.json"

    def read(self) -> Side:
        return Side.model_validate_json(self.path.read_text())


def main() -> None:
    arguments = _arguments()
    if arguments.side:
        _train_alone(next(_jobs(arguments)))
        return
    jobs = list(_jobs(arguments))
    for job in jobs:
        _material(job, _config(job.system))
    _train_all([job for job in jobs if not job.path.exists()])
    print(table(jobs, arguments), flush=True)


def _jobs(arguments: argparse.Namespace):
    for seed in arguments.seeds:
        for system in SYSTEMS:
            if arguments.only and system.name not in arguments.only:
                continue
            for side in [arguments.side] if arguments.side else SIDES:
                yield Job(system, seed, side, arguments.work, arguments.minutes)


def _train_all(jobs: list[Job]) -> None:
    """Each in a process of its own that is bound to one core."""
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def run(job: Job) -> None:
        core = cores.get()
        command = [
            sys.executable, str(Path(__file__).parent), "--side", job.side, "--only", job.system.name,
            "--seeds", str(job.seed), "--minutes", str(job.minutes), "--work", str(job.work),
        ]  # fmt: skip
        try:
            with (job.work / f"{job.path.stem}.log").open("w") as log:
                subprocess.run(
                    command, check=True, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {core})
                )
        finally:
            cores.put(core)
        side = job.read()
        print(f"{job.path.stem}: {side.seconds:.0f} s, {side.cpu:.0f} of them on the core", flush=True)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(run, jobs))


def _train_alone(job: Job) -> None:
    import torch

    torch.set_num_threads(1)
    config = _config(job.system)
    material = _material(job, config)
    work = job.work / f".{job.path.stem}"
    if job.side == "medflow":
        from ours import learn

        said, took, cpu = learn(material, config.models[0], config.train, job.minutes * 60, job.seed, work)
    else:
        import peers

        peer = importlib.import_module(job.system.peer).PEER
        seconds = job.minutes * 60
        said, took, cpu = peers.learn(material, peer, job.system.size, seconds, job.seed, SIDES[job.side])
    shutil.rmtree(work, ignore_errors=True)
    part = job.path.with_suffix(".part")
    part.write_text(_kept(said, took, cpu).model_dump_json())
    part.replace(job.path)


def _config(system: System) -> RunConfig:
    return load(system.dataset, [f"model.size={system.size}", *system.overrides])


def _material(job: Job, config: RunConfig) -> Material:
    return prepare(config, job.system.images, job.seed, job.work / "material")


def _kept(said: Predictions, seconds: float, cpu: float) -> Side:
    return Side(
        seconds=seconds,
        cpu=cpu,
        rows=said.rows_digest,
        heads=said.heads,
        image_id=[str(item) for item in said.image_id],
        group=[str(item) for item in said.group],
        probabilities={name: array.tolist() for name, array in said.probabilities.items()},
        targets={name: array.tolist() for name, array in said.targets.items()},
        mask_scores={name: array.tolist() for name, array in said.mask_scores.items()},
    )


def _predictions(side: Side) -> Predictions:
    def arrays(lists: dict[str, list[list[float]]]) -> dict[str, np.ndarray]:
        return {name: np.array(values, dtype=np.float32) for name, values in lists.items()}

    return Predictions(
        bundle_digest="",
        rows_digest=side.rows,
        heads=side.heads,
        image_id=np.array(side.image_id, dtype=object),
        group=np.array(side.group, dtype=object),
        probabilities=arrays(side.probabilities),
        targets=arrays(side.targets),
        mask_scores=arrays(side.mask_scores),
    )


def table(jobs: list[Job], arguments: argparse.Namespace) -> str:
    lines = [
        "| system | head | metric | medflow | its own recipe | difference | s of one core | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system in dict.fromkeys(job.system for job in jobs):
        sides = {name: [job.read() for job in jobs if job.system == system and job.side == name] for name in SIDES}
        said = {name: [_predictions(side) for side in found] for name, found in sides.items()}
        for head in said["medflow"][0].heads:
            better = max(list(SIDES)[1:], key=lambda name: judge.reached(head, said[name]).value)
            line = judge.compare(system.title, head, said["medflow"], said[better])
            lines.append(_row(line, better, _seconds(sides["medflow"]), _seconds(sides[better])))
    seeds = ", ".join(str(seed) for seed in arguments.seeds)
    note = f"{arguments.minutes:g} minutes of one core for the training of a side, seeds {seeds}, {platform.machine()}."
    return "\n".join([*lines, "", note])


def _row(line: judge.Line, better: str, ours: float, theirs: float) -> str:
    verdict = ("above chance" if line.above_chance else "AT CHANCE") + (", BEHIND" if line.behind else ", not behind")
    rates = "" if SIDES[better] == 1 else f", rates x {SIDES[better]:g}"
    return (
        f"| {line.system} | {line.head} | {line.ours.metric} | {_words(line.ours)} | {_words(line.theirs)}{rates} "
        f"| {line.difference.value:+.3f} ({line.difference.low:+.3f} to {line.difference.high:+.3f}) "
        f"| {ours:.0f} and {theirs:.0f} | {verdict} |"
    )


def _seconds(sides: list[Side]) -> float:
    return float(np.mean([side.cpu for side in sides]))


def _words(reached: judge.Reached) -> str:
    return f"{reached.value:.3f} ({reached.low:.3f} to {reached.high:.3f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make table-systems", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, each side and seed (default 2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", choices=[system.name for system in SYSTEMS])
    parser.add_argument(
        "--side", choices=SIDES, help="train this side alone, in this process (used by the command itself)"
    )
    parser.add_argument("--work", type=Path, default=Path("build/systems"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()

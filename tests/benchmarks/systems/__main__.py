"""`make table-systems`: the five published systems on their generated twins, medflow beside each system's own recipe.

    python tests/benchmarks/systems [--minutes 4] [--seeds 0 1 2] [--only NAME ...] [--work DIR]

Same rows, same size, same wall time of training, the same two threads, one side after the other. What is finished is
kept below --work and not done again, so that two hours may be spent in pieces. Prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import judge
import torch
from material import prepare
from pydantic import BaseModel, TypeAdapter

from medflow.config.reading import load
from medflow.records import HeadSpec, Predictions


@dataclass(frozen=True)
class System:
    name: str
    dataset: str
    peer: str
    size: int
    images: int
    overrides: tuple[str, ...]
    """On top of the shipped YAML: the same family at reduced width, and rates for a start from random weights."""


SCRATCH = ("model.pretrained=none", "train.schedule=cosine", "train.patience=0", "train.warmup=0.1")
SYSTEMS = (
    System("1: UNet, two tasks", "covid_radiography", "unet_peer", 96, 800, (
        "model.channels=[8,16,32,64,128]", "model.features=16", "model.mask_hidden=8", "model.label_hidden=[64,32]",
        "train.lr=2e-3", *SCRATCH)),
    System("2: ResNet", "chest_xray_pneumonia", "resnet_peer", 96, 800, (
        "model.name=resnet18", "train.lr=1e-3", *SCRATCH)),
    System("3: two stages", "lung_disease", "two_stage_peer", 96, 800, (
        "model.name=regnety_002", "train.lr=1e-3", *SCRATCH)),
    System("4: SMP Unet", "ham10000", "smp_peer", 96, 800, (
        "model.kind=smp", "model.encoder=resnet18", "train.lr=1e-3", *SCRATCH)),
    System("5: dual path", "nih_chestxray14", "dense_peer", 64, 1200, ("train.lr=1e-3", *SCRATCH)),
)  # fmt: skip


class Side(BaseModel):
    """What one side said of one seed's test rows: what is kept on disk."""

    seconds: float
    rows: str
    heads: tuple[HeadSpec, ...]
    image_id: list[str]
    group: list[str]
    probabilities: dict[str, list[list[float]]]
    targets: dict[str, list[list[float]]]
    mask_scores: dict[str, list[list[float]]]

    model_config = {"ser_json_inf_nan": "constants"}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(2)
    lines, seconds = [], {}
    for system in SYSTEMS:
        if arguments.only and system.peer.removesuffix("_peer") not in arguments.only:
            continue
        sides = [_both(system, seed, arguments) for seed in arguments.seeds]
        ours, theirs = ([_predictions(side[place]) for side in sides] for place in (0, 1))
        lines += judge.compare(system.name, ours, theirs)
        seconds[system.name] = tuple(sum(side[place].seconds for side in sides) / len(sides) for place in (0, 1))
        print(table(lines, seconds, arguments), flush=True)


def _both(system: System, seed: int, arguments: argparse.Namespace) -> tuple[Side, Side]:
    return _side(system, seed, "ours", arguments), _side(system, seed, "theirs", arguments)


def _side(system: System, seed: int, side: str, arguments: argparse.Namespace) -> Side:
    path = arguments.work / f"{system.peer}_{seed}_{side}_{arguments.minutes:g}.json"
    if path.exists():
        return TypeAdapter(Side).validate_json(path.read_text())
    config = load(system.dataset, [f"model.size={system.size}", *system.overrides])
    material = prepare(config, system.images, seed, arguments.work / "material")
    work = arguments.work / f".{path.stem}"
    if side == "ours":
        from ours import learn

        predictions, took = learn(material, config.models[0], config.train, arguments.minutes * 60, seed, work)
    else:
        import peers

        peer = importlib.import_module(system.peer).PEER
        predictions, took = peers.learn(material, peer, system.size, arguments.minutes * 60, seed)
    shutil.rmtree(work, ignore_errors=True)
    found = _kept(predictions, took)
    part = path.with_suffix(".part")
    part.write_text(found.model_dump_json())
    part.replace(path)
    print(f"{system.name}, seed {seed}, {side}: {took:.0f} s", flush=True)
    return found


def _kept(said: Predictions, seconds: float) -> Side:
    return Side(
        seconds=seconds,
        rows=said.rows_digest,
        heads=said.heads,
        image_id=[str(item) for item in said.image_id],
        group=[str(item) for item in said.group],
        probabilities={name: array.tolist() for name, array in said.probabilities.items()},
        targets={name: array.tolist() for name, array in said.targets.items()},
        mask_scores={name: array.tolist() for name, array in said.mask_scores.items()},
    )


def _predictions(side: Side) -> Predictions:
    import numpy as np

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


def table(lines: list[judge.Line], seconds: dict[str, tuple[float, float]], arguments: argparse.Namespace) -> str:
    rows = [
        "| system | head | metric | medflow | its own recipe | difference | s of training | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        took = seconds[line.system]
        verdict = ("above chance" if line.above_chance else "AT CHANCE") + (", BEHIND" if line.behind else "")
        rows.append(
            f"| {line.system} | {line.head} | {line.ours.metric} | {_words(line.ours)} | {_words(line.theirs)} "
            f"| {line.difference.value:+.3f} ({line.difference.low:+.3f} to {line.difference.high:+.3f}) "
            f"| {took[0]:.0f} and {took[1]:.0f} | {verdict} |"
        )
    seeds = ", ".join(str(seed) for seed in arguments.seeds)
    note = f"{arguments.minutes:g} minutes of training a side, seeds {seeds}, {platform.machine()}, 2 threads."
    return "\n".join([*rows, "", note])


def _words(reached: judge.Reached) -> str:
    return f"{reached.value:.3f} ({reached.low:.3f} to {reached.high:.3f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make table-systems", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each side and seed (default 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", choices=[system.peer.removesuffix("_peer") for system in SYSTEMS])
    parser.add_argument("--work", type=Path, default=Path("build/systems"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()

"""The training loop, which ``train`` runs on a new network and ``prune`` on a pruned one.

Read ``fit``, then the methods of ``_Fit`` in their order. Lightning Fabric brings device, precision, backward and
clipping; the rest is here.

Killed at any moment and run again with the same arguments, it takes up the newest checkpoint and ends with the same
weights, bit for bit, on a CPU with the same number of threads (another number adds up in another order) and the same
torch. No generator's state is stored for that: order, augmentation and dropout are drawn from (seed, stage, epoch,
step).
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from medflow import models
from medflow.checkpoint import Checkpoint, Checkpoints, Position
from medflow.config.sections import Stage, TrainConfig
from medflow.errors import ConfigError, TrainingError
from medflow.heads import Objective
from medflow.loader import Batch, Examples, Pass, batches, cut, plain_batches
from medflow.monitor import Monitor
from medflow.pixels import open_store
from medflow.progress import say
from medflow.records import EpochLog, HeadSpec, Manifest, Pixels, Preprocess, TrainingLog, content, digest_of
from medflow.schedule import freeze, lr_at, make_optimizer, training_mode
from medflow.text import Tokenizer
from medflow.tracking import Tracker

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Data:
    """What a network learns from: rows, their pixels, the heads asked for and the size they are read at."""

    train: Manifest
    val: Manifest
    pixels: Pixels
    heads: tuple[HeadSpec, ...]
    preprocess: Preprocess
    tokenizer: Tokenizer | None = None
    """Of a network that reads reports."""

    def examples(self, part: Manifest) -> Examples:
        store = open_store(self.pixels, self.preprocess.pixels.height)
        return Examples(part, store, self.heads, self.tokenizer)

    def digest(self) -> str:
        parts = [self.train.digest(), self.val.digest(), self.pixels.digest()]
        reading = [self.tokenizer.sha256()] if self.tokenizer else []
        return digest_of([*parts, [content(head) for head in self.heads], content(self.preprocess), *reading])


def fit(
    network: models.Network, data: Data, config: TrainConfig, *, tracker: Tracker, checkpoints: Checkpoints
) -> TrainingLog:
    """Train ``network`` in place, through all stages, and leave in it the weights that were best on ``data.val``.

    On return it is on the CPU, in evaluation mode. Raises TrainingError where the loss is not finite or memory runs
    out, ConfigError where the config cannot be meant for these heads or this machine.
    """
    run = _Fit(network, data, config, tracker, checkpoints)
    with _reproducible(), _explained(config):
        run.resume()
        while run.at.stage < len(config.stages):
            run.begin_stage()
            while run.goes_on():
                run.train_epoch()
                run.end_epoch()
            run.end_stage()
    network.load_state_dict(run.best)
    network.cpu().eval().requires_grad_(True)
    return run.log()


class _Fit:
    """One training under way. ``at`` is where it stands; with the tensors it makes a checkpoint."""

    def __init__(
        self, network: models.Network, data: Data, config: TrainConfig, tracker: Tracker, checkpoints: Checkpoints
    ) -> None:
        if config.batch_size is None:
            raise ConfigError("train.batch_size is not set", hint="set it, or add the model to configs/models.yaml")
        self.network, self.config, self.tracker, self.checkpoints = network, config, tracker, checkpoints
        self.train, self.val = data.examples(data.train), data.examples(data.val)
        self.batch_size = config.batch_size
        self.fabric, self.precision = _fabric(config)
        self.module = self.fabric.setup_module(network)
        self.objective = Objective(data.heads, self.train.targets, config).to(self.fabric.device)
        self.monitor = Monitor(config.monitor, data.heads, self.val.targets)
        self.at = Position()
        self.best: Mapping[str, Tensor] = {}
        self.optimizer_state: Mapping[str, Tensor] = {}
        self.saved = time.monotonic()

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.at.stage]

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = self.checkpoints.newest()
        if found is None:
            return
        self.at, self.best, self.optimizer_state = found.position, found.best, found.optimizer
        self.network.load_state_dict(found.model)
        self.fabric.strategy.precision.load_state_dict(dict(found.position.scaler))
        say(f"training goes on in stage {self.at.stage + 1}, epoch {self.at.epoch + 1}, step {self.at.step + 1}")
        for entry in self.at.log:
            self._track(entry)

    def begin_stage(self) -> None:
        """A stage starts from the best weights so far, with an optimiser of its own."""
        if self.best and self.at.epoch == self.at.step == 0:
            self.network.load_state_dict(self.best)
        freeze(self.network, self.stage)
        # A fused optimiser unscales fp16 gradients by itself, and then they could not be clipped.
        optimizer = make_optimizer(self.network, self.stage, fused=self.precision != "16-mixed")
        _fill(optimizer, self.optimizer_state)
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)

    def goes_on(self) -> bool:
        patience = self.stage.patience
        return self.at.epoch < self.stage.epochs and not 0 < patience <= self.at.waited

    def train_epoch(self) -> None:
        walk = Pass(self.config.seed, self.at.stage, self.at.epoch)
        steps = _grouped(cut(walk.order(len(self.train)), self.batch_size), self.config.accumulate)
        left = [rows for step in steps[self.at.step :] for rows in step]
        loader = batches(self.train, left, augment=self.config.augment, walk=walk, workers=self.config.workers)
        training_mode(self.network, self.stage)
        start, before = time.monotonic(), self.at.seconds
        for step in range(self.at.step, len(steps)):
            lr = lr_at(self.stage, self.at.epoch * len(steps) + step, self.stage.epochs * len(steps))
            loss = self._step(steps[step], loader, lr=lr, seed=walk.step(step))
            images = sum(len(rows) for rows in steps[step])
            self._advance(
                step=step + 1,
                loss_sum=self.at.loss_sum + loss * images,
                images=self.at.images + images,
                seconds=before + time.monotonic() - start,
                lr=lr,
            )
            self._save_if_due()

    def _step(self, parts: Sequence[np.ndarray], loader: Iterator[Batch], *, lr: float, seed: int) -> float:
        """One optimiser step over one or more batches; the mean loss over their images."""
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        terms = self.train.terms(np.concatenate(parts))
        total = torch.zeros((), device=self.fabric.device)
        image_ids: list[str] = []
        for _ in parts:
            batch = next(loader).to(self.fabric.device)
            image_ids += batch.image_ids
            sums = self.objective.sums(self.module(*batch.inputs), batch.targets, batch.known)
            loss = self.objective.total({name: value / terms[name] for name, value in sums.items()})
            self.fabric.backward(loss)
            total += loss.detach()
        value = float(total)
        if not math.isfinite(value):
            raise _diverged(f"{self._where()}, step {self.at.step + 1}", value, image_ids)
        if self.config.clip:
            # Infinite fp16 gradients are the scaler's to skip.
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def end_epoch(self) -> None:
        """Validate, keep the weights if they are the best, and tell."""
        losses = self._validate()
        loss = self.objective.total(losses)
        if not math.isfinite(loss):
            raise _diverged(f"{self._where()}, validation", loss, [])
        score = self.monitor.score(loss)
        entry = EpochLog(
            stage=self.at.stage,
            epoch=len(self.at.log) + 1,
            train_loss=self.at.loss_sum / self.at.images,
            val_loss=loss,
            val_score=score,
            lr=self.at.lr,
            seconds=self.at.seconds,
            images_per_second=self.at.images / max(self.at.seconds, 1e-9),
            losses=losses,
        )
        better = score > self.at.best_score
        self._say(entry, better)
        self._track(entry)
        if better:
            self.best = models.tensors_of(self.network)
            self._advance(best_score=score, best_epoch=entry.epoch)
        self._advance(
            epoch=self.at.epoch + 1,
            step=0,
            loss_sum=0.0,
            images=0,
            seconds=0.0,
            log=(*self.at.log, entry),
            waited=0 if better else self.at.waited + 1,
        )
        self._save_if_due()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean validation loss by head, each over its known terms."""
        self.network.eval()
        self.monitor.reset()
        terms = self.val.terms(np.arange(len(self.val)))
        sums = dict.fromkeys(terms, 0.0)
        for batch in plain_batches(self.val, self.batch_size, workers=self.config.workers):
            there = batch.to(self.fabric.device)
            logits = self.module(*there.inputs)
            for name, value in self.objective.sums(logits, there.targets, there.known).items():
                sums[name] += float(value)
            self.monitor.add(_arrays(logits), _arrays(batch.targets), _arrays(batch.known))
        return {name: value / terms[name] for name, value in sums.items()}

    def end_stage(self) -> None:
        if self.at.epoch < self.stage.epochs:
            say(f"stage {self.at.stage + 1} ends early: no better {self.monitor.name} in {self.at.waited} epochs")
        self._advance(stage=self.at.stage + 1, epoch=0, waited=0)
        self.optimizer_state = {}

    def log(self) -> TrainingLog:
        return TrainingLog(
            seed=self.config.seed,
            best_epoch=self.at.best_epoch,
            best_score=self.at.best_score,
            monitor=self.monitor.name,
            epochs=self.at.log,
            class_weights=self.objective.class_weights,
            train_images=len(self.train),
            val_images=len(self.val),
            device=str(self.fabric.device),
            precision=self.precision,
        )

    def _advance(self, **fields: object) -> None:
        self.at = self.at.model_copy(update=fields)

    def _save_if_due(self) -> None:
        if time.monotonic() - self.saved < self.config.checkpoint_seconds:
            return
        state = self.optimizer.state_dict()["state"]
        self._advance(scaler=self.fabric.strategy.precision.state_dict())
        self.checkpoints.save(
            Checkpoint(
                position=self.at,
                model=models.tensors_of(self.network),
                best=self.best,
                optimizer={f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()},
            )
        )
        self.saved = time.monotonic()

    def _where(self) -> str:
        stage, stages = self.at.stage + 1, len(self.config.stages)
        return f"stage {stage} of {stages}, epoch {self.at.epoch + 1} of {self.stage.epochs}"

    def _say(self, entry: EpochLog, better: bool) -> None:
        say(
            f"{self._where()}: loss {entry.train_loss:.4f}, validation {entry.val_loss:.4f}, "
            f"{self.monitor.name} {entry.val_score:.4f}{' (best)' if better else ''}, "
            f"lr {entry.lr:.2e}, {entry.images_per_second:.0f} images/s"
        )

    def _track(self, entry: EpochLog) -> None:
        values = {"train/loss": entry.train_loss, "val/loss": entry.val_loss, "lr": entry.lr}
        values |= {f"val/{self.monitor.name}": entry.val_score, "images_per_second": entry.images_per_second}
        values |= {f"val/loss/{name}": value for name, value in entry.losses.items()}
        # Once over all epochs, and once by stage.
        values |= {f"stage_{entry.stage + 1}/{name}": value for name, value in values.items()}
        self.tracker.metrics(values, step=entry.epoch)


def _grouped(parts: Sequence[np.ndarray], size: int) -> list[Sequence[np.ndarray]]:
    return [parts[start : start + size] for start in range(0, len(parts), size)]


def _fill(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Load the state of a checkpoint, ``<parameter's index>.<name>``; none leaves the optimiser new."""
    if not saved:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # In the parameter's strides: the fused kernel walks both in memory order, and files know no channels-last.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _diverged(where: str, value: float, image_ids: Sequence[str]) -> TrainingError:
    among = f", on images {', '.join(image_ids[:8])}{' ...' if len(image_ids) > 8 else ''}" if image_ids else ""
    return TrainingError(
        f"the loss is {value} in {where}{among}",
        hint="lower train.lr, raise train.warmup, set train.clip=1, or train with train.precision=32-true",
    )


# -- the machine ---------------------------------------------------------------------------------


def _fabric(config: TrainConfig) -> tuple[Fabric, Precision]:
    """Fabric on one device, and the precision that the config asks for or the hardware has."""
    from lightning_fabric import Fabric

    cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        raise ConfigError("train.accelerator is cuda, and torch sees no GPU here", hint="set train.accelerator=auto")
    accelerator = "cuda" if cuda and config.accelerator != "cpu" else "cpu"
    precision = _precision(config, accelerator)
    return Fabric(accelerator=accelerator, devices=1, precision=precision), precision


def _precision(config: TrainConfig, accelerator: str) -> Precision:
    if config.precision != "auto":
        return config.precision
    if accelerator == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


@contextmanager
def _reproducible() -> Iterator[None]:
    """Deterministic kernels where torch has them; the caller's generators and settings come back afterwards."""
    deterministic: Any = torch.utils.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when first used
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # a memset of every tensor, for debugging
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)
            deterministic.fill_uninitialized_memory = filled


@contextmanager
def _explained(config: TrainConfig) -> Iterator[None]:
    """torch's two errors that a user can mend by a setting, in medflow's words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        half = max(1, (config.batch_size or 2) // 2)
        raise TrainingError(
            f"the GPU's memory does not hold a batch of {config.batch_size} images",
            hint=f"set train.batch_size={half} train.accumulate={2 * config.accumulate}",
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "batch norm cannot learn from a batch of one image", hint="set train.batch_size to 2 or more"
        ) from error

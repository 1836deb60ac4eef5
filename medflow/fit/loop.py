"""The loop itself, as one process runs it: alone, or as one rank of several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medflow import mixing, models
from medflow.averaging import Average
from medflow.checkpoint import Checkpoint, Checkpoints, Position, fill, optimizer_tensors
from medflow.config.sections import Stage, TrainConfig
from medflow.device import Machine, explained, reproducible
from medflow.errors import ConfigError, TrainingError
from medflow.features import Rest, may_remember, remembered
from medflow.fit import telling
from medflow.fit.data import Data
from medflow.fit.tally import Tally
from medflow.heads import Objective
from medflow.loader import Batch, Examples, Pass, batches, in_order, plain_batches
from medflow.memory import halved, notes, recomputed, undone
from medflow.monitor import Monitor
from medflow.plan import Step, plan
from medflow.progress import say
from medflow.records import EpochLog, TrainingLog
from medflow.sampling import chances
from medflow.schedule import freeze, lr_at, make_optimizer, training_mode
from medflow.tracking import Tracker

Result = TypeVar("Result")


def train_here(
    network: models.Network,
    data: Data,
    config: TrainConfig,
    tracker: Tracker,
    checkpoints: Checkpoints,
    halvings: int = 0,
    nodes: int = 1,
) -> tuple[Mapping[str, Tensor], TrainingLog]:
    """This process's part of a training on ``nodes`` machines: the best weights, and what happened."""
    with reproducible(), explained(), recomputed(network, config):
        run = Loop(network, data, config, tracker, checkpoints, halvings, nodes)
        run.resume()
        while run.at.stage < len(config.stages):
            run.begin_stage()
            while run.goes_on():
                run.fitting(run.train_epoch)
                run.end_epoch()
            run.end_stage()
    return run.best, run.log()


class Loop:
    """One training under way. ``at`` is where it stands; with the tensors it makes a checkpoint."""

    def __init__(
        self,
        network: models.Network,
        data: Data,
        config: TrainConfig,
        tracker: Tracker,
        checkpoints: Checkpoints,
        halvings: int,
        nodes: int,
    ) -> None:
        if config.batch_size is None:
            raise ConfigError("train.batch_size is not set", hint="set it, or add the model to configs/models.yaml")
        self.network, self.config, self.tracker, self.checkpoints = network, config, tracker, checkpoints
        self.train, self.val = data.examples(data.train), data.examples(data.val)
        _refuse_mixed_reports(self.train, config)
        self.batch_size = config.batch_size
        self.image_size = (data.preprocess.pixels.height, data.preprocess.pixels.width)
        self.machine = Machine(config, nodes)
        self.fabric = self.machine.fabric
        self.machine.synchronized(network)
        network.to(self.machine.device)
        self.objective = Objective(data.heads, self.train.targets, config).to(self.machine.device)
        self.chances = chances(config.sampler, self.train.targets)
        self.monitor = Monitor(config.monitor, data.heads, self.val.targets, len(self.val), config.stop_on)
        self.heads = data.heads
        self.tally = Tally(data.heads, mixed=mixing.mixes(config.mixing))
        self.at = Position(halvings=halvings, threads=self.machine.threads)
        self.best: Mapping[str, Tensor] = {}
        self.optimizer_state: Mapping[str, Tensor] = {}
        self.average_state: Mapping[str, Tensor] = {}
        self.saved = time.monotonic()

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.at.stage]

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = self.checkpoints.newest()
        if found is None:
            return
        halvings = max(found.position.halvings, self.at.halvings)
        self.machine.compute_with(found.position.threads)
        # Not the checkpoint's where it was made on a GPU and this is a CPU, or the other way round.
        self.at = found.position.model_copy(update={"halvings": halvings, "threads": self.machine.threads})
        self.best, self.optimizer_state, self.average_state = found.best, found.optimizer, found.average
        self.network.load_state_dict(found.model)
        self.fabric.strategy.precision.load_state_dict(dict(found.position.scaler))
        if not self.machine.leads:
            return
        say(f"training goes on in stage {self.at.stage + 1}, epoch {self.at.epoch + 1}, step {self.at.step + 1}")
        for entry in self.at.log:
            self._track(entry)

    def begin_stage(self) -> None:
        """A stage starts from the best weights so far, with an optimiser of its own."""
        if self.best and self.at.epoch == self.at.step == 0:
            self.network.load_state_dict(self.best)
        freeze(self.network, self.stage)
        self.train_inputs, self.val_inputs = self.train, self.val
        self.learner: nn.Module = self.network
        if may_remember(self.network, self.config):
            self._remember()
        self.module = self.fabric.setup_module(self.learner)
        # A fused optimiser unscales fp16 gradients by itself, and then they could not be clipped.
        optimizer = make_optimizer(self.network, self.stage, fused=self.machine.precision != "16-mixed")
        fill(optimizer, self.optimizer_state)
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)
        decay = self.config.ema_decay
        self.average = Average(self.network, decay, self.average_state) if decay else None
        if self.machine.leads:
            self._say_what_learns()

    def _remember(self) -> None:
        """From now on a frozen backbone's features are the input, and what comes after it is what learns."""
        found = self.fitting(
            lambda: remembered(self.network, (self.train, self.val), self.machine, self.config, self._at_once)
        )
        if found is not None:
            (self.train_inputs, self.val_inputs), self.learner = found, Rest(self.network)

    def goes_on(self) -> bool:
        patience = self.stage.patience
        return self.at.epoch < self.stage.epochs and not 0 < patience <= self.at.waited

    def train_epoch(self) -> None:
        """Every step of the epoch that is not done yet."""
        walk = Pass(self.config.seed, self.at.stage, self.at.epoch)
        steps = plan(
            walk.rows(len(self.train), self.chances), size=self.batch_size, accumulate=self.config.accumulate,
            halvings=self.at.halvings, ranks=self.machine.ranks,
        )  # fmt: skip
        feed = self._feed(steps[self.at.step :], walk)
        training_mode(self.network, self.stage)
        start, before = time.monotonic(), self.at.seconds
        for number in range(self.at.step, len(steps)):
            step = steps[number]
            lr = self._set_rates(self.at.epoch * len(steps) + number, self.stage.epochs * len(steps))
            with undone(self.network):
                loss, *seen = self._step(number, step, feed, walk)
            if self.average is not None:
                self.average.update(self.at.epoch * len(steps) + number)
            self._advance(
                step=number + 1,
                loss_sum=self.at.loss_sum + loss * len(step.rows),
                images=self.at.images + len(step.rows),
                tally=self.tally.added(self.at.tally, seen),
                seconds=before + time.monotonic() - start,
                lr=lr,
            )
            self._save_if_due()

    def _feed(self, steps: Sequence[Step], walk: Pass) -> Iterator[Batch]:
        """This rank's batches, in order. One that is left without rows goes along with an image that does not count."""
        mine = [shares[self.machine.rank] for step in steps for shares in step.passes]
        rows = [self._share(shares) for step in steps for shares in step.passes]
        again = [self._share(shares) for step in steps for shares in step.again]
        made = batches(
            self.train_inputs, rows, again=again, augment=self.config.augment, walk=walk, workers=self.machine.workers
        )
        for own, batch in zip(mine, made, strict=True):
            yield batch if len(own) else batch.unlabelled()

    def _share(self, shares: Sequence[np.ndarray]) -> np.ndarray:
        """This rank's of a pass, or the pass's first where it has none."""
        own = shares[self.machine.rank]
        return own if len(own) else np.concatenate(shares)[:1]

    def _set_rates(self, step: int, steps: int) -> float:
        """Give each group its learning rate for a step of the stage; returns that of the head."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.stage, step, steps, base=group["base"], reductions=self.at.reductions)
        return lr_at(self.stage, step, steps, reductions=self.at.reductions)

    def _step(self, number: int, step: Step, feed: Iterator[Batch], walk: Pass) -> list[float]:
        """One optimiser step over one or more forward passes: the mean loss over its images, then its tally."""
        torch.manual_seed(walk.step(number, self.machine.rank))
        mixes = mixing.draws(self.config.mixing, step, lambda *place: walk.mix(number, *place), self.image_size)
        terms = self.train_inputs.terms(step.rows, mixing.partners(step, mixes))
        # One vector, so that a step waits for the device, and for the other ranks, once.
        total = torch.zeros(1 + self.tally.size, device=self.machine.device)
        for index, shares in enumerate(mixes):
            batch = next(feed).to(self.machine.device)
            with self.fabric.no_backward_sync(self.module, enabled=index < len(mixes) - 1):
                loss, seen = self._loss(batch, shares[self.machine.rank], terms)
                # Fabric takes the mean over ranks, and each has its share of the step's sum.
                self.fabric.backward(loss if self.machine.ranks == 1 else loss * self.machine.ranks)
            total[0] += loss.detach()
            total[1:] += seen
        values: list[float] = self.machine.added(total).tolist()
        if not math.isfinite(values[0]):
            raise self._diverged(f"{self._where()}, step {number + 1}", values[0], self.train.image_ids[step.rows])
        if self.config.clip:
            # Infinite fp16 gradients are the scaler's to skip.
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return values

    def _loss(self, batch: Batch, mix: mixing.Mix | None, terms: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """A forward pass's part of the step's loss, and its tally."""
        if mix is None:
            logits = self.module(*batch.inputs)
            sums = self.objective.sums(logits, batch.targets, batch.known)
        else:
            batch, partners = mix(batch)
            logits = self.module(*batch.inputs)
            own = self.objective.sums(logits, batch.targets, batch.known)
            other = self.objective.sums(logits, partners, batch.known)
            sums = {name: mix.share * own[name] + (1.0 - mix.share) * other[name] for name in own}
        loss = self.objective.total({name: value / terms[name] for name, value in sums.items()})
        return loss, self.tally.seen(sums, logits, batch)

    def end_epoch(self) -> None:
        """Validate, keep the weights if they are the best, and tell."""
        with self.average.in_place() if self.average is not None else nullcontext():
            self.machine.share_buffers(self.network)
            losses = self.fitting(self._validate)
            loss = self.objective.total(losses)
            score = self.monitor.score(loss)
            better = score > self.at.best_score
            stop_score = self.monitor.stop_score(loss)
            if better:
                self.best = models.tensors_of(self.network)
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
            scores=self.monitor.scores(),
            train_losses=self.tally.losses(self.at.tally),
            train_accuracy=self.tally.accuracy(self.at.tally),
        )
        if self.machine.leads:
            say(f"{self._where()}: {telling.line(entry, self.monitor.name, self.heads, better=better)}")
            self._track(entry)
        if better:
            self._advance(best_score=score, best_epoch=entry.epoch)
        stalled = 0 if better else self.at.stalled + 1
        lowered = self.stage.schedule == "plateau" and stalled > self.stage.plateau_patience
        self._advance(
            epoch=self.at.epoch + 1,
            step=0,
            loss_sum=0.0,
            images=0,
            tally=(),
            seconds=0.0,
            log=(*self.at.log, entry),
            waited=0 if stop_score > self.at.best_stop else self.at.waited + 1,
            best_stop=max(stop_score, self.at.best_stop),
            stalled=0 if lowered else stalled,
            reductions=self.at.reductions + lowered,
        )
        self._save_if_due()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean validation loss by head, each over its known terms. The ranks share the batches."""
        self.network.eval()
        self.monitor.reset()
        terms = self.val_inputs.terms(np.arange(len(self.val)))
        parts = in_order(self.val, self._at_once)
        sums = np.zeros((len(parts), len(terms)))
        mine = range(self.machine.rank, len(parts), self.machine.ranks)
        made = plain_batches(self.val_inputs, [parts[index] for index in mine], workers=self.machine.workers)
        for index, batch in zip(mine, made, strict=True):
            there = batch.to(self.machine.device)
            with self.fabric.autocast():
                logits = self.learner(*there.inputs)
            losses = self.objective.sums(logits, there.targets, there.known)
            sums[index] = [float(losses[name]) for name in terms]
            self.monitor.add(parts[index], _arrays(logits), _arrays(batch.targets), _arrays(batch.known))
        sums = self.machine.merged(sums)
        self.monitor.merge(self.machine.merged)
        for bad in np.flatnonzero(~np.isfinite(sums).all(axis=1)):
            raise self._diverged(f"{self._where()}, validation", sums[bad].sum(), self.val.image_ids[parts[bad]])
        return {name: float(value) / terms[name] for name, value in zip(terms, sums.cumsum(axis=0)[-1], strict=True)}

    def end_stage(self) -> None:
        if self.at.epoch < self.stage.epochs and self.machine.leads:
            say(f"stage {self.at.stage + 1} ends early: no better {self.monitor.stops_on} in {self.at.waited} epochs")
        self._advance(stage=self.at.stage + 1, epoch=0, waited=0, stalled=0, reductions=0)
        self.optimizer_state, self.average_state = {}, {}

    def log(self) -> TrainingLog:
        return TrainingLog(
            seed=self.config.seed,
            best_epoch=self.at.best_epoch,
            best_score=self.at.best_score,
            monitor=self.monitor.name,
            stop_on=self.monitor.stops_on if self.monitor.stops_on != self.monitor.name else None,
            epochs=self.at.log,
            class_weights=self.objective.class_weights,
            train_images=len(self.train),
            val_images=len(self.val),
            device=str(self.machine.device),
            precision=self.machine.precision,
            devices=self.machine.ranks,
            threads=self.at.threads,
            halvings=self.at.halvings,
            notes=notes(self.network, self.config, self.machine, self.at.halvings),
        )

    # -- memory, checkpoints, words ------------------------------------------------------------------

    @property
    def _at_once(self) -> int:
        """Images that memory holds at once in this process."""
        return max(1, self.batch_size // self.machine.ranks >> self.at.halvings)

    def fitting(self, action: Callable[[], Result]) -> Result:
        """What ``action`` returns, with the batch halved until memory holds it; ``action`` goes on from ``at``."""
        while True:
            try:
                return action()
            except torch.OutOfMemoryError:
                if self.machine.ranks > 1:
                    raise  # the others wait for this rank: all begin again, from the newest checkpoint
            # Outside `except`, where the error no longer holds on to the tensors of the pass.
            self._advance(halvings=halved(self.config, self.at.halvings))
            self.network.zero_grad()

    def _advance(self, **fields: object) -> None:
        self.at = self.at.model_copy(update=fields)

    def _save_if_due(self) -> None:
        if not self.machine.leads or time.monotonic() - self.saved < self.config.checkpoint_seconds:
            return
        self._advance(scaler=self.fabric.strategy.precision.state_dict())
        self.checkpoints.save(
            Checkpoint(
                position=self.at,
                model=models.tensors_of(self.network),
                best=self.best,
                optimizer=optimizer_tensors(self.optimizer),
                average={} if self.average is None else self.average.tensors,
            )
        )
        self.saved = time.monotonic()

    def _where(self) -> str:
        stage, stages = self.at.stage + 1, len(self.config.stages)
        return f"stage {stage} of {stages}, epoch {self.at.epoch + 1} of {self.stage.epochs}"

    def _diverged(self, where: str, value: float, image_ids: Sequence[str]) -> TrainingError:
        among = f"{', '.join(image_ids[:8])}{' ...' if len(image_ids) > 8 else ''}"
        return TrainingError(
            f"the loss is {value} in {where}, on images {among} (train.seed={self.config.seed})",
            hint="lower train.lr, raise train.warmup, set train.clip=1, or train with train.precision=32-true",
        )

    def _say_what_learns(self) -> None:
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in self.network.parameters()]
        total, learning = sum(count for count, _ in counts), sum(count for count, learns in counts if learns)
        stage, stages = self.at.stage + 1, len(self.config.stages)
        say(f"stage {stage} of {stages}: {learning:,} of {total:,} parameters learn, {self.machine}")
        self.tracker.params({f"stage_{stage}.trainable_parameters": learning})

    def _track(self, entry: EpochLog) -> None:
        self.tracker.metrics(telling.metrics(entry, self.monitor.name), step=entry.epoch)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _refuse_mixed_reports(examples: Examples, config: TrainConfig) -> None:
    if examples.has_text and mixing.mixes(config.mixing):
        raise ConfigError(
            "train.mixing joins two images, and this model reads reports, of which two cannot be joined",
            hint="set train.mixing.mixup=0 and train.mixing.cutmix=0",
        )

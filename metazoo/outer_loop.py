"""The outer loop: one training under way, from a checkpoint to the next."""

from __future__ import annotations

import math
import time
from contextlib import closing
from functools import partial
from typing import Any

import torch

from metazoo import assembly, graphs, hardware
from metazoo.backbones import parameter_count
from metazoo.config import RunConfig
from metazoo.domains import Domain
from metazoo.episodes import Episodes
from metazoo.errors import Diverged
from metazoo.evaluation import episode_scores, interval, load_weights
from metazoo.gradient_norms import GradientRecord, NormSums
from metazoo.graphs import Replayed
from metazoo.memory import PassSize
from metazoo.meta_pass import MetaPass, Results, together
from metazoo.metrics import MetricsLog
from metazoo.outer_step import OuterStep
from metazoo.outer_update import OuterUpdate, outer_lr
from metazoo.placement import Placement
from metazoo.predicting import Predictors
from metazoo.prefetching import batches
from metazoo.progress import Reporter, Stage
from metazoo.recomputing import Recomputing
from metazoo.run import Run, Summary
from metazoo.stopping import Stopped, StopRequest

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written this often inside an epoch; at an epoch's end there always is one."""

LOOK_SECONDS = 0.5
"""Loss and score are read from the device this often: each reading waits for all the work that is queued there."""


class Trainer:
    """A training under way: model, optimiser, episodes, and how far it has come."""

    def __init__(
        self,
        config: RunConfig,
        domain: Domain,
        device: torch.device,
        tasks_per_pass: int | None,
        reporter: Reporter,
        record_gradients: bool = False,
        placement: Placement | None = None,
        record_graphs: bool = True,
        recompute: bool = False,
    ):
        self.settings = config.training
        self.device = device
        self.reporter = reporter
        self.measure = domain.measure
        self.model = assembly.build(config, domain.inputs).to(device)
        self.model.backbone.recomputing = Recomputing() if recompute else None
        self.stream = domain.episodes(config, "train", config.seed, device, domain.inputs, placement)
        # The validation episodes are the same for every seed.
        self.validation = domain.episodes(config, "val", 0, device, domain.inputs, placement)
        self.update = OuterUpdate(self.model.outer_groups(), self.settings, device)
        self.parameters = self.update.parameters
        most, note = self.settings.meta_batch, reporter.note
        self.pass_size = PassSize(tasks_per_pass, device, most, self.model, "training passes", note)
        scale = 1 / self.settings.meta_batch if self.settings.reduction == "mean" else 1.0
        self.meta_pass = MetaPass(self.model, self.parameters, scale)
        recorder = graphs.recorder(device) if record_graphs else None
        self.learning = Replayed(self.meta_pass, recorder, "The passes of training", note)
        self.predictors = Predictors([self.model], device, tasks_per_pass, recorder, note)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.score_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.gradients = GradientRecord(self.settings.iterations_per_epoch) if record_gradients else None
        self.iteration = 0
        """Finished outer iterations."""
        self.epoch = 0
        """Finished epochs."""
        self.epoch_seconds = 0.0
        self.training_seconds = 0.0
        self.validation_seconds = 0.0
        self.peak_memory_mb = 0.0
        hardware.reset_peak(device)

    def resume(self, run: Run) -> None:
        """Take up the run's last checkpoint, if there is one, and open its log."""
        self.run, self.checkpoints = run, run.checkpoints
        index = self.checkpoints.index
        self.checkpoints.tidy(index)
        if index.last is not None:
            self._load(self.checkpoints.load(index.last))
        step = self.epoch * self.settings.iterations_per_epoch
        self.log = MetricsLog(run.folder / "metrics.jsonl", run.folder / "tensorboard", index.metrics_bytes, step)

    def train(self, stop: StopRequest) -> None:
        """Train to the end; `Stopped` leaves at the next safe point after a stop was requested."""
        while self.epoch < self.settings.epochs:
            self._train_epoch(stop)
            self._check_finite()
            self._end_epoch(self._validate(stop))

    def save(self) -> None:
        """Write a checkpoint of where the training stands, unless what it would hold is not a number."""
        self._check_finite()
        self._write_checkpoint()

    def summary(self) -> Summary:
        tasks = self.iteration * self.settings.meta_batch
        return Summary(
            training_seconds=round(self.training_seconds, 3),
            validation_seconds=round(self.validation_seconds, 3),
            tasks_per_second=round(tasks / max(self.training_seconds, 1e-9), 3),
            peak_memory_mb=round(self._peak(), 1),
            parameters=parameter_count(self.model),
            versions=hardware.versions(),
            hardware=hardware.describe(self.device),
        )

    def _train_epoch(self, stop: StopRequest) -> None:
        settings = self.settings
        first_order = self.epoch < settings.first_order_epochs
        outer = OuterStep(first_order=first_order, epoch=self.epoch, epochs=settings.epochs)
        self.update.set_rates(outer, self.epoch)
        end = (self.epoch + 1) * settings.iterations_per_epoch
        before = self.epoch_seconds
        begun = looked = saved = time.perf_counter()
        first = self.iteration
        self.model.train()
        size = settings.meta_batch
        coming = batches(self.stream, ((iteration * size, size) for iteration in range(first, end)))
        total = settings.epochs * settings.iterations_per_epoch
        with self.reporter.stage("training", total, first) as stage, closing(coming):
            while self.iteration < end:
                if stop.requested:
                    raise Stopped
                self._step(outer, next(coming))
                self.iteration += 1
                clock = time.perf_counter()
                if clock - looked >= LOOK_SECONDS:
                    self._look(stage, (self.iteration - first) * settings.meta_batch / (clock - begun))
                    looked = time.perf_counter()
                self.epoch_seconds = before + clock - begun
                if clock - saved >= CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.perf_counter()
            self.loss_sum.item()  # on a GPU, wait for the work that is still queued: it belongs to this epoch's time
            self.epoch_seconds = before + time.perf_counter() - begun

    def _step(self, outer: OuterStep, batch: Episodes) -> None:
        """One outer iteration on its meta-batch. Nothing here waits for the device."""
        restart_every = self.settings.legacy_restart_every
        if restart_every and self.iteration % restart_every == 0:
            self.update.restart()
            self.update.set_rates(outer, self.epoch)
        self.meta_pass.counts_norms = self.gradients is not None
        self.pass_size.measure(partial(self.learning.once, outer=outer), batch)
        results = self.pass_size.run(partial(self._passes, outer, batch))
        self.meta_pass.give_gradients(results)
        self.loss_sum += results["loss"]
        self.score_sum += results["score"]
        if self.gradients:
            self.gradients.enter(self.iteration)
            self.gradients.inner.add(self.meta_pass.norms(results))
            found = ((name, parameter.grad) for name, parameter in self.model.backbone.named_parameters())
            norms = NormSums()
            norms.add({name: gradient.unsqueeze(0) for name, gradient in found if gradient is not None})
            self.gradients.outer.add(norms.totals)
        self.update.step()

    def _passes(self, outer: OuterStep, batch: Episodes, size: int) -> Results:
        return together(partial(self.learning, outer=outer), list(batch.chunks(size)))

    def _look(self, stage: Stage, tasks_per_second: float) -> None:
        loss, value = self._averages()
        if not math.isfinite(loss):
            raise self._diverged()
        stage.update(self.iteration, {"loss": loss, self.measure.name: value, "tasks/s": tasks_per_second})

    def _averages(self) -> tuple[float, float]:
        """Mean loss, and accuracy or error, of this epoch's tasks so far; waits for the device."""
        tasks = max(1, (self.iteration - self.epoch * self.settings.iterations_per_epoch) * self.settings.meta_batch)
        return self.loss_sum.item() / tasks, self.measure.mean(self.score_sum.item(), tasks, self.stream.queries)

    def _check_finite(self) -> None:
        """Raise Diverged unless the epoch's losses and all meta-parameters are numbers."""
        parameters = (parameter.detach().sum(dtype=torch.float64) for parameter in self.parameters)
        sums = torch.stack([self.loss_sum, *parameters])
        if not bool(sums.isfinite().all()):
            raise self._diverged()

    def _diverged(self) -> Diverged:
        kept = f"checkpoints up to epoch {self.epoch} are kept" if self.epoch else "no epoch was finished"
        return Diverged(
            f"Training diverged in epoch {self.epoch + 1}: by iteration {self.iteration} the loss, a "
            f"meta-parameter or a validation error was not a number ({kept}). "
            "Lower outer_lr or the method's inner rate, or set gradient_clamp."
        )

    def _validate(self, stop: StopRequest) -> list[float]:
        begun = time.perf_counter()
        episodes = self.settings.validation_episodes
        with self.reporter.stage("validation", episodes) as stage:

            def progress(done: int) -> None:
                if stop.requested:
                    raise Stopped
                stage.update(done)

            committees = {"validation": [self.model]}
            of_validation = self.validation, episodes, self.device, None, progress, self.predictors
            scores = episode_scores(committees, *of_validation)["validation"]
        self.epoch_validation_seconds = time.perf_counter() - begun
        return scores

    def _end_epoch(self, scores: list[float]) -> None:
        settings, measure = self.settings, self.measure.name
        loss, value = self._averages()
        if not math.isfinite(sum(scores)):
            raise self._diverged()
        scored = interval(scores, self.validation.queries, self.measure)
        rate = settings.iterations_per_epoch * settings.meta_batch / max(self.epoch_seconds, 1e-9)
        self.epoch += 1
        self.log.write(
            {
                "epoch": self.epoch,
                "iteration": self.iteration,
                "train_loss": loss,
                f"train_{measure}": value,
                f"validation_{measure}": scored.mean,
                "validation_interval": scored.over_episodes,
                "outer_lr": outer_lr(settings, self.epoch - 1),
                "tasks_per_second": round(rate, 3),
                "seconds": round(self.epoch_seconds, 3),
                "validation_seconds": round(self.epoch_validation_seconds, 3),
                **({"gradient_norms": self.gradients.close_epoch(self.iteration)} if self.gradients else {}),
            }
        )
        self.training_seconds += self.epoch_seconds
        self.validation_seconds += self.epoch_validation_seconds
        self.epoch_seconds = 0.0
        self.loss_sum.zero_()
        self.score_sum.zero_()
        self._write_checkpoint(self.measure.sign * sum(scores))

    def _write_checkpoint(self, validated: float | None = None) -> None:
        weights = {"model": self.model.state_dict()}
        self.checkpoints.save(
            {**weights, **self._state()},
            epoch=self.epoch,
            iteration=self.iteration,
            metrics_bytes=self.log.position,
            candidate=None if validated is None else (weights, validated),
            keep=self.settings.keep,
        )

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "optimizer": self.update.state_dict(),
            "iteration": self.iteration,
            "epoch": self.epoch,
            "loss_sum": self.loss_sum,
            "score_sum": self.score_sum,
            "seconds": [self.epoch_seconds, self.training_seconds, self.validation_seconds],
            "peak_memory_mb": self._peak(),
            "generator": torch.get_rng_state(),
        }
        if self.gradients:
            state["gradient_norms"] = self.gradients.state()
        if self.device.type == "cuda":
            state["gpu_generator"] = torch.cuda.get_rng_state(self.device)
        return state

    def _load(self, state: dict[str, Any]) -> None:
        load_weights(self.model, state["model"], self.run)
        self.update.load_state_dict(state["optimizer"])
        self.iteration, self.epoch = state["iteration"], state["epoch"]
        self.loss_sum = state["loss_sum"].to(self.device)
        self.score_sum = state["score_sum" if "score_sum" in state else "correct"].to(self.device, torch.float64)
        self.epoch_seconds, self.training_seconds, self.validation_seconds = state["seconds"]
        self.peak_memory_mb = state["peak_memory_mb"]
        if "gradient_norms" in state:  # once begun, whoever resumes it
            self.gradients = self.gradients or GradientRecord(self.settings.iterations_per_epoch)
            self.gradients.load(state["gradient_norms"], self.device)
        torch.set_rng_state(state["generator"])
        if self.device.type == "cuda" and "gpu_generator" in state:
            torch.cuda.set_rng_state(state["gpu_generator"], self.device)

    def _peak(self) -> float:
        return max(self.peak_memory_mb, hardware.peak_memory_mb(self.device))

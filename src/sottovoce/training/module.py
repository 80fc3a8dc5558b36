"""The Lightning module: what one optimiser step is, and what happens between steps.

Lightning drives devices, precision, accumulation and distribution. Everything that decides what a run computes is
here and a pure function of (configuration, step): the batch, its augmentation, the dropout, the learning rate.
Legend: B trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from sottovoce.core.random import seed_for
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart
from sottovoce.decoding.greedy import blank_fraction
from sottovoce.features.augmentation import Draws
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.losses.combine import normalised_sum
from sottovoce.losses.ctc import ctc_loss
from sottovoce.models.compose import DecoderModel
from sottovoce.training.config import RunConfig
from sottovoce.training.guard import GradientGuard, Verdict
from sottovoce.training.optimizer import build_optimizer, set_learning_rates
from sottovoce.training.schedules import learning_rate_factor


@dataclass
class Progress:
    """Where a run is; saved in every checkpoint."""

    step: int = 0
    """Optimiser steps done, skipped ones included: the number of the next batch."""
    updates: int = 0
    """Steps that moved the weights; the schedule counts these."""
    best: list[float] | None = None
    """Selection metric (smaller is better) and validation loss of the best checkpoint."""
    best_step: int | None = None


class DecoderTraining(lightning.LightningModule):
    """One decoder, one optimiser, one guard."""

    def __init__(
        self,
        config: RunConfig,
        model: DecoderModel,
        pipeline: FeaturePipeline,
        blank: int,
        begin: Callable[[], None],
        after_step: Callable[[Verdict, dict[str, float]], None],
    ) -> None:
        """`begin` is called before the first step, `after_step` after every one, skipped or not."""
        super().__init__()
        self.config = config
        self.model = model
        self.pipeline = pipeline
        self.blank = blank
        self.begin = begin
        self.after_step = after_step
        self.progress = Progress()
        self.guard = GradientGuard(config.training.max_grad_norm, config.training.max_bad_steps)
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._forward = cast(DecoderModel, torch.compile(model)) if config.training.compile else model
        self._losses: dict[str, float] = {}
        self._metrics: dict[str, float] = {}
        self._started = 0.0
        self._verdict = Verdict(math.nan)

    @property
    def micro_batches(self) -> int:
        """Forward passes of one process in one optimiser step."""
        return self.config.training.gradient_accumulation_steps

    @property
    def global_batch(self) -> int:
        """Trials of one optimiser step over all processes."""
        return self.config.training.batch_size * self.micro_batches * self.trainer.world_size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one optimiser of the run."""
        return build_optimizer(self.model, self.config.training.optimizer)

    def on_train_start(self) -> None:
        """The optimiser exists and everything is on its device."""
        self.begin()

    def transfer_batch_to_device(self, batch: StepPart, device: torch.device, dataloader_idx: int) -> StepPart:
        """The part with its tensors on `device`."""
        return StepPart(batch.step, batch.micro_batch, batch.positions, batch.batch.to(device, non_blocking=True))

    def training_step(self, part: StepPart, batch_idx: int) -> torch.Tensor:
        """This part's share of the step's loss."""
        if part.micro_batch == 0:
            self._begin_step()
        torch.manual_seed(seed_for(self.config.seed, "dropout", part.step, part.micro_batch, self.global_rank))
        draws = Draws(self.config.seed, part.step, part.positions, part.batch.signal.device)
        batch = self.pipeline.train(part.batch, draws)
        logits_BSV, frames_B = self._forward(batch.signal, batch.lengths_B, batch.session_B)
        nats_B = ctc_loss(logits_BSV, batch.labels_BU, frames_B, batch.label_lengths_B, self.blank)
        share = normalised_sum(
            nats_B, batch.label_lengths_B, self.config.training.loss_normalisation, self.global_batch
        )
        self._note(batch, nats_B.detach(), share.detach(), logits_BSV.detach(), frames_B)
        # Lightning divides by the micro-batches and averages over processes; the share is already final.
        return share * (self.micro_batches * self.trainer.world_size)

    def _begin_step(self) -> None:
        self._started = time.perf_counter()
        self._losses, self._metrics = {}, {}
        factor = learning_rate_factor(self.progress.updates, self.config.training.scheduler, self.config.training.steps)
        optimizer = cast(LightningOptimizer, self.optimizers()).optimizer
        for name, rate in set_learning_rates(optimizer, factor).items():
            self._metrics[f"learning_rate/{name}"] = rate

    def _note(
        self, batch: Batch, nats_B: torch.Tensor, share: torch.Tensor, logits_BSV: torch.Tensor, frames_B: torch.Tensor
    ) -> None:
        self._losses.update(zip(batch.trial_ids, nats_B.tolist(), strict=True))
        part = {
            "train/loss": float(self._summed(share)),
            "train/ctc_loss": float(self._summed(nats_B.sum())) / self.global_batch,
            "train/blank_fraction": blank_fraction(logits_BSV, frames_B, self.blank) / self.micro_batches,
            "train/padding_fraction": batch.padding_fraction / self.micro_batches,
        }
        for name, value in part.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value

    def _summed(self, here: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.trainer.world_size == 1:
            return here
        return cast(torch.Tensor, self.trainer.strategy.reduce(here.clone(), reduce_op="sum"))  # reduces in place

    def anywhere(self, here: bool) -> bool:
        """True when `here` is true in any process."""
        if self.trainer.world_size == 1:
            return here
        return bool(self._summed(torch.tensor(float(here), device=self.device)))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The guard's look, after backward and un-scaling and before the weights move."""
        bad_anywhere = self.anywhere(any(not math.isfinite(nats) for nats in self._losses.values()))
        self._verdict = self.guard.inspect(self.named, self._losses, bad_anywhere)
        self._metrics["train/gradient_norm"] = self._verdict.gradient_norm

    def on_train_batch_end(self, outputs: Any, batch: StepPart, batch_idx: int) -> None:
        """Count the step and let the run log, validate and save."""
        if batch.micro_batch != self.micro_batches - 1:
            return
        self.progress.step += 1
        self.progress.updates += not self._verdict.skipped
        self._metrics["train/step_seconds"] = time.perf_counter() - self._started
        self.after_step(self._verdict, self._metrics)

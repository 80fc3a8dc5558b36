"""The Lightning module: what one optimiser step is, and what happens between steps.

Lightning drives devices, precision, accumulation and distribution. Everything that decides what a run computes is
here and a pure function of (configuration, step): the batch, its augmentation, the dropout, the learning rate.
Legend: B trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

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
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.training.config import RunConfig
from sottovoce.training.guard import GradientGuard, Verdict, owned_by
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.optimizer import build_optimizer, set_learning_rates
from sottovoce.training.ownership import check_owners, freeze_others
from sottovoce.training.processes import true_anywhere
from sottovoce.training.schedules import learning_rate_factor
from sottovoce.training.stages import Activity, Curriculum, StagePosition
from sottovoce.training.teachers import Lesson, Teachers
from sottovoce.training.terms import (
    METRIC_NAMES,
    TOKEN_LOSSES,
    WHOLE_TRIAL_LOSSES,
    GradientBalance,
    Terms,
    compute_terms,
    distillation_term,
    flow_term,
    length_scaled,
)

BALANCE_EVERY_STEPS = 10
"""How often the gradients of the losses are measured against each other (`training.loss_scaling=gradient_norm`)."""
T = TypeVar("T")
Encode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], Encoded]


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
    best_by: str = ""
    """Metric and decoder that chose it; results by another do not compare, so that the search begins anew."""
    trained: list[str] = field(default_factory=list)
    """Components that have learnt in some step."""
    position: StagePosition = field(default_factory=StagePosition)


class DecoderTraining(lightning.LightningModule):
    """One decoder, one optimiser, one guard."""

    def __init__(
        self,
        config: RunConfig,
        model: DecoderModel,
        pipeline: FeaturePipeline,
        blank: int,
        curriculum: Curriculum,
        modes: ModeTargets | None,
        teachers: Teachers | None,
        begin: Callable[[], None],
        before_update: Callable[[Verdict], None],
        after_step: Callable[[Verdict, dict[str, float]], None],
    ) -> None:
        """`begin` is called before the first step, `before_update` in every one when the guard has decided and the
        weights have not moved yet, `after_step` after every one, skipped or not.
        """
        super().__init__()
        self.config = config
        self.model = model
        self.pipeline = pipeline
        self.blank = blank
        self.curriculum = curriculum
        self.modes = modes
        self.teachers = teachers
        self.begin = begin
        self.before_update = before_update
        self.after_step = after_step
        self.progress = Progress()
        self.guard = GradientGuard(config.training.max_grad_norm, config.training.max_bad_steps, config.training.guard)
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._encode = cast(Encode, torch.compile(model.encode)) if config.training.compile else model.encode
        self.balance = GradientBalance()
        self.groups = {name: model.component_of(name) for name in self.named}
        self.parts: list[StepPart] = []
        """What the step in progress, or just done, was computed from, as the loader gave it."""
        self.lessons: list[Lesson] = []
        """What the teachers said of each of them, where there are any."""
        self.losses: dict[tuple[str, str], float] = {}
        """Nats of the same step by (loss, trial id)."""
        self._metrics: dict[str, float] = {}
        self._started = 0.0
        self._ended: float | None = None
        self._verdict = Verdict(math.nan)
        self.activity: Activity | None = None
        """What the step in progress computes and moves."""
        self.owners_checked = True
        """What learns has been held against what receives a gradient since it last changed."""

    @property
    def micro_batches(self) -> int:
        """Forward passes of one process in one optimiser step."""
        return self.config.training.gradient_accumulation_steps

    @property
    def world_size(self) -> int:
        """Processes that train together; 1 outside a trainer."""
        return 1 if self._trainer is None else self._trainer.world_size

    @property
    def global_batch(self) -> int:
        """Trials of one optimiser step over all processes."""
        return self.config.training.batch_size * self.micro_batches * self.world_size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one optimiser of the run."""
        training = self.config.training
        return build_optimizer(self.model, training.optimizer, by_component=bool(training.stages))

    def on_train_start(self) -> None:
        """The optimiser exists and everything is on its device."""
        self.begin()

    def transfer_batch_to_device(self, batch: StepPart, device: torch.device, dataloader_idx: int) -> StepPart:
        """The part with its tensors on `device`."""
        return StepPart(batch.step, batch.micro_batch, batch.positions, batch.batch.to(device, non_blocking=True))

    def training_step(self, part: StepPart, batch_idx: int) -> torch.Tensor:
        """This part's share of the step's loss."""
        if part.micro_batch == 0:
            self.enter_step()
            self.set_rates(cast(LightningOptimizer, self.optimizers()).optimizer)
        return self.forward_part(part)

    def forward_part(self, part: StepPart) -> torch.Tensor:
        """This part's share of the step's loss; `enter_step` comes before a step's first part."""
        self.parts.append(part)
        batch, terms, shares = self.shares_of(part)
        assert self.activity is not None
        share = torch.stack([self.activity.weights[name] * value for name, value in shares.items()]).sum()
        self._note(batch, terms, share.detach())
        # Lightning divides by the micro-batches and averages over processes; the share is already final.
        return share * (self.micro_batches * self.world_size)

    def shares_of(self, part: StepPart) -> tuple[Batch, Terms, dict[str, torch.Tensor]]:
        """The features, the losses, and each loss as this part's share of the step's before its weight."""
        torch.manual_seed(seed_for(self.config.seed, "dropout", part.step, part.micro_batch, self.global_rank))
        draws = Draws(self.config.seed, part.step, part.positions, part.batch.signal.device)
        assert self.activity is not None
        clean = self._clean_features(part.batch) if "denoise" in self.activity.weights else None
        raw = part.batch  # the pipeline writes into the signal; a bad step is kept as the loader gave it
        batch = self.pipeline.train(_copied(raw) if self.config.training.guard.num_capsules else raw, draws)
        with_mode = "mode" in self.activity.weights or "mode_head" in self.progress.trained
        encoded = self._encode(batch.signal, batch.lengths_B, batch.session_B, with_mode)
        terms = compute_terms(self.model, batch, encoded, self.activity.weights, self.blank, self.modes)
        if "distillation" in self.activity.weights:
            assert self.teachers is not None
            self.lessons.append(self.teachers.lesson(batch, part.positions))
            temperature = self.config.training.distillation.temperature
            terms.nats["distillation"] = distillation_term(terms, self.lessons[-1], temperature)
        if clean is not None:
            terms.nats["denoise"] = flow_term(
                self.model, clean, self.config.training.corruption, draws.for_corruption()
            )
        counted = dict(terms.nats)
        if "distillation" in counted and "ctc" in counted:
            counted["ctc"] = counted["ctc"] * self._weight_of_labels(self.lessons[-1])
        shares = {name: self.share(name, nats_B, batch, terms) for name, nats_B in counted.items()}
        if self.config.training.loss_scaling == "gradient_norm" and "rnnt" in shares and "ctc" in shares:
            shares = self._balanced(shares, encoded.frames_BSE)
        return batch, terms, shares

    def _weight_of_labels(self, lesson: Lesson) -> torch.Tensor:
        """[B]: 1 for a trial that is taught; one that nobody may teach gets back what its teachers would have had."""
        alone = 1 / (1 - self.curriculum.distillation)
        return torch.where(lesson.weights_BS.any(1), 1.0, alone)

    def _clean_features(self, batch: Batch) -> Batch:
        """The features as recorded, without augmentation."""
        return self.pipeline.evaluate(_copied(batch))

    def share(self, name: str, nats_B: torch.Tensor, batch: Batch, terms: Terms) -> torch.Tensor:
        """A loss as this part's share of the step's, normalised and unweighted."""
        training = self.config.training
        tokens_B = batch.label_lengths_B
        if name in WHOLE_TRIAL_LOSSES:
            tokens_B = torch.ones_like(tokens_B)
        if name == "rnnt" and training.loss_scaling in ("length", "frames"):  # stands in for the division by tokens
            nats_B = length_scaled(nats_B, terms.encoded.lengths_B, batch.label_lengths_B, training.loss_scaling)
            tokens_B = torch.ones_like(tokens_B)
        return normalised_sum(nats_B, tokens_B, training.loss_normalisation, self.global_batch)

    def _balanced(self, shares: dict[str, torch.Tensor], frames_BSE: torch.Tensor) -> dict[str, torch.Tensor]:
        """The losses with the transducer's scaled so that it sends as large a gradient into the encoder as CTC does."""
        if self.progress.step % BALANCE_EVERY_STEPS == 0 or not self.balance.norms:
            for name in TOKEN_LOSSES:
                (gradient,) = torch.autograd.grad(shares[name], frames_BSE, retain_graph=True)
                self.balance.measure(name, float(self._summed(gradient.float().square().sum().detach())))
        return shares | {"rnnt": shares["rnnt"] * self.balance.transducer_factor}

    def enter_step(self) -> None:
        """Forget the step before; let gradients reach what the next one moves."""
        self._started = time.perf_counter()
        self.parts, self.lessons, self.losses, self._metrics = [], [], {}, {}
        if self._ended is not None:
            self._metrics["train/data_wait_seconds"] = self._started - self._ended
        now = self.curriculum.activity(self.progress.position)
        if self.activity is None or now.rates.keys() != self.activity.rates.keys():
            freeze_others(self.named, now)
            self.owners_checked = False
        self.activity = now

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Give `optimizer` the learning rates of the step that was entered."""
        assert self.activity is not None
        scheduler, total_steps = self.config.training.scheduler, self.curriculum.total_steps
        factor = learning_rate_factor(self.progress.updates, scheduler, total_steps)
        for name, rate in set_learning_rates(optimizer, factor, self.activity.rates).items():
            self._metrics[f"learning_rate/{name}"] = rate

    def _note(self, batch: Batch, terms: Terms, share: torch.Tensor) -> None:
        part = {
            "train/loss": float(self._summed(share)),
            "train/padding_fraction": batch.padding_fraction / self.micro_batches,
        }
        for name, nats_B in terms.nats.items():
            nats_B = nats_B.detach()
            self.losses.update(zip(((name, trial) for trial in batch.trial_ids), nats_B.tolist(), strict=True))
            part[METRIC_NAMES[name]] = float(self._summed(nats_B.sum())) / self.global_batch
        if terms.ctc_logits_BSV is not None:
            blanks = blank_fraction(terms.ctc_logits_BSV.detach(), terms.encoded.lengths_B, self.blank)
            part["train/blank_fraction"] = blanks / self.micro_batches
        if self.lessons:
            taught, frames = self.lessons[-1].weights_BS.sum(), terms.encoded.lengths_B.sum()
            valid = float(self._summed(taught)) / float(self._summed(frames))
            part["train/valid_frame_ratio"] = valid / self.micro_batches
        for name, value in part.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value

    def _summed(self, here: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.world_size == 1:
            return here
        return cast(torch.Tensor, self.trainer.strategy.reduce(here.clone(), reduce_op="sum"))  # reduces in place

    def agreed(self, here: Sequence[bool]) -> list[bool]:
        """Which of the flags `here` are true in any process."""
        return true_anywhere(self._trainer, here, self.device)

    def anywhere(self, here: bool) -> bool:
        """True when `here` is true in any process."""
        return self.agreed([here])[0]

    def broadcast(self, here: T) -> T:
        """The main process's value, in every process."""
        return here if self.world_size == 1 else self.trainer.strategy.broadcast(here)

    def from_main(self, here: tuple[float, float]) -> tuple[float, float]:
        """The main process's two numbers, in every process."""
        if self.world_size == 1:
            return here
        numbers = torch.tensor(here if self.global_rank == 0 else (0.0, 0.0), device=self.device, dtype=torch.float64)
        first, second = self._summed(numbers).tolist()
        return first, second

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The guard's look, after backward and un-scaling and before the weights move."""
        if not self.owners_checked:
            assert self.activity is not None
            check_owners(self.named, self.activity)
            self.owners_checked = True
        weights = self.activity.weights if self.activity else {}
        several, likelihoods = len(weights) > 1, any(name in weights for name in TOKEN_LOSSES)
        losses = {f"{trial} {name}" if several else trial: nats for (name, trial), nats in self.losses.items()}
        owned = owned_by(optimizer, self.named)
        self._verdict = self.guard.inspect(owned, losses, self.agreed, self.groups, self.model, likelihoods=likelihoods)
        self._metrics["train/gradient_norm"] = self._verdict.gradient_norm
        for group, norm in self._verdict.group_norms.items():
            self._metrics[f"gradient_norm/{group}"] = norm
        self.before_update(self._verdict)

    def on_train_batch_end(self, outputs: Any, batch: StepPart, batch_idx: int) -> None:
        """Count the step and let the run log, validate and save."""
        if batch.micro_batch != self.micro_batches - 1:
            return
        self.progress.step += 1
        self.balance.settle(not self._verdict.skipped)
        if not self._verdict.skipped:
            self.progress.updates += 1
            assert self.activity is not None
            self.progress.trained = sorted({*self.progress.trained, *self.activity.rates})
            position = self.progress.position
            self.progress.position = position.after_update(self.curriculum.stage(position))
        self._metrics["train/step_seconds"] = time.perf_counter() - self._started
        self.after_step(self._verdict, self._metrics)
        self._ended = time.perf_counter()


def _copied(batch: Batch) -> Batch:
    """The batch with a signal of its own."""
    return replace(batch, signal=batch.signal.clone())

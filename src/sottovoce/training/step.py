"""One optimiser step, top to bottom, without a framework.

    begin    what the step computes and moves, and its learning rates
    add      for each part of its batch: features, frames, losses, this part's share of the step's loss; then `backward`
    inspect  the guard's look at losses and gradients, before the weights move; then `optimizer.step()`
    finish   the step is counted

`take` is all of it in this order. In a run Lightning makes these calls (`module.py`), for devices and processes; the
rehearsal before a run, the replay of a bad step, the monitor and the benchmarks make them by themselves. What a step
computes is a pure function of (configuration, step): its batch, augmentation, dropout and learning rate.
Legend: B trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from sottovoce.core.random import seed_for
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart
from sottovoce.decoding.greedy import blank_fraction
from sottovoce.features.augmentation import Draws
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.runs.names import Metric, group_gradient_norm, learning_rate
from sottovoce.training import branches
from sottovoce.training.balance import GradientBalance
from sottovoce.training.branches import SPEAKING_MODE, Branch, PartInputs
from sottovoce.training.config import RunConfig
from sottovoce.training.guard import GradientGuard, Verdict, owned_by
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.optimizer import build_optimizer, set_learning_rates
from sottovoce.training.ownership import check_owners, freeze_others
from sottovoce.training.processes import OneProcess, Processes, true_anywhere
from sottovoce.training.schedules import learning_rate_factor
from sottovoce.training.stages import Activity, Curriculum, StagePosition
from sottovoce.training.teachers import Teachers, TeacherTargets

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


@dataclass(frozen=True)
class ComputedPart:
    """What the forward pass of one part of a step gave."""

    inputs: PartInputs
    nats: dict[str, torch.Tensor]
    """Each loss by name, [B] in nats."""
    shares: dict[str, torch.Tensor]
    """Each loss as this part's share of the step's, normalised and before its weight."""
    loss: torch.Tensor
    """This part's share of the step's loss: what is differentiated. The shares of all parts and processes add up."""


@dataclass
class StepRecord:
    """What the step in progress, or just done, was computed from and what it gave, in this process."""

    activity: Activity
    """What it computes and moves."""
    parts: list[StepPart] = field(default_factory=list)
    """As the loader gave them."""
    teacher_targets: list[TeacherTargets] = field(default_factory=list)
    """What the teachers said of each of them, where there are any."""
    losses: dict[tuple[str, str], float] = field(default_factory=dict)
    """Nats by (loss, trial id)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Under their recorded names, summed over all processes."""
    verdict: Verdict | None = None
    """The guard's, and its summary of the gradients, once it has looked."""
    began: float = field(default_factory=time.perf_counter)


@dataclass
class StepComputer:
    """What makes the steps of a run: its model and settings, and all that changes from step to step but the moments."""

    config: RunConfig
    model: DecoderModel
    pipeline: FeaturePipeline
    blank: int
    curriculum: Curriculum
    modes: ModeTargets | None = None
    teachers: Teachers | None = None
    processes: Processes = field(default_factory=OneProcess)
    branches: Mapping[str, Branch] = field(default_factory=lambda: branches.BRANCHES)
    bfloat16: bool = False
    """Forward passes run under autocast; whoever makes them enters it (`autocast`)."""
    progress: Progress = field(default_factory=Progress)
    balance: GradientBalance = field(default_factory=GradientBalance)
    record: StepRecord | None = None
    """Of the step in progress, or just done; None before the first."""
    owners_checked: bool = True
    """What learns has been held against what receives a gradient since it last changed."""
    waiting_since: float | None = None
    """When this process began to wait for the data of the next step."""
    guard: GradientGuard = field(init=False)
    named: dict[str, nn.Parameter] = field(init=False)
    """The parameters that can learn."""
    groups: dict[str, str] = field(init=False)
    """Component of each of them."""

    def __post_init__(self) -> None:
        training = self.config.training
        self.guard = GradientGuard(training.max_grad_norm, training.max_bad_steps, training.guard)
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.groups = {name: DecoderModel.component_of(name) for name in self.named}
        self._encode = cast(Encode, torch.compile(self.model.encode)) if training.compile else self.model.encode

    def take(self, parts: Iterable[StepPart], optimizer: torch.optim.Optimizer) -> StepRecord:
        """The whole step in this process."""
        record = self.begin(optimizer)
        for part in parts:
            with self.autocast():
                computed = self.add(part)
            computed.loss.backward()  # type: ignore[no-untyped-call]
        self.inspect(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        self.finish()
        return record

    def begin(self, optimizer: torch.optim.Optimizer | None = None) -> StepRecord:
        """Forget the step before; let gradients reach what this one moves, and set its rates, where there are any."""
        before, now = self.record, self.curriculum.activity(self.progress.position)
        if before is None or now.rates.keys() != before.activity.rates.keys():
            freeze_others(self.named, now)
            self.owners_checked = False
        self.record = StepRecord(now)
        if self.waiting_since is not None:
            self.record.metrics[Metric.DATA_WAIT_SECONDS] = self.record.began - self.waiting_since
        if optimizer is not None:
            self.set_rates(optimizer)
        return self.record

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Give `optimizer` the learning rates of the step that has begun."""
        scheduler, total_steps = self.config.training.scheduler, self.curriculum.total_steps
        factor = learning_rate_factor(self.progress.updates, scheduler, total_steps)
        for name, rate in set_learning_rates(optimizer, factor, self.now.rates).items():
            self.current.metrics[learning_rate(name)] = rate

    def add(self, part: StepPart) -> ComputedPart:
        """The forward pass of one part, noted in the record."""
        self.current.parts.append(part)
        computed = self.compute(part, self.now)
        self._note(computed)
        return computed

    def compute(self, part: StepPart, activity: Activity) -> ComputedPart:
        """Features, frames and the losses that `activity` weighs; a branch without a weight is not run."""
        active = {name: branch for name, branch in self.branches.items() if name in activity.weights}
        inputs = self.inputs(part, activity, any(branch.needs_recorded for branch in active.values()))
        nats = {name: branch.nats(inputs, self.settings_of(branch)) for name, branch in active.items()}
        shares = {name: self.share(name, nats_B, inputs) for name, nats_B in nats.items()}
        if self.config.training.loss_scaling == "gradient_norm":
            frames_BSE, step = inputs.encoded.frames_BSE, self.progress.step
            shares = self.balance.balanced(shares, frames_BSE, step, self.processes.summed)
        weighted = [activity.weights[name] * share for name, share in shares.items()]
        return ComputedPart(inputs, nats, shares, torch.stack(weighted).sum())

    def inputs(self, part: StepPart, activity: Activity, with_recorded: bool = False) -> PartInputs:
        """The part as the model hears it: its augmentation and its dropout follow from the seed and the step."""
        torch.manual_seed(seed_for(self.config.seed, "dropout", part.step, part.micro_batch, self.processes.rank))
        draws = Draws(self.config.seed, part.step, part.positions, part.batch.signal.device)
        raw = part.batch  # the pipeline writes into the signal; a bad step is kept as the loader gave it
        recorded = self.pipeline.evaluate(_copied(raw)) if with_recorded else None
        batch = self.pipeline.train(_copied(raw) if self.config.training.guard.num_capsules else raw, draws)
        with_mode = SPEAKING_MODE.name in activity.weights or SPEAKING_MODE.component in self.progress.trained
        encoded = self._encode(batch.signal, batch.lengths_B, batch.session_B, with_mode)
        of_part = self.model, batch, encoded, self.blank, part.positions, draws, recorded
        return PartInputs(*of_part, self.modes, self.teachers)

    def settings_of(self, branch: Branch) -> Any:
        """The section of the configuration that a branch names; None where it names none."""
        value: Any = self.config if branch.section else None
        for name in filter(None, branch.section.split(".")):
            value = getattr(value, name)
        return value

    def share(self, name: str, nats_B: torch.Tensor, inputs: PartInputs) -> torch.Tensor:
        """A loss as this part's share of the step's, normalised and before its weight."""
        branch, normalisation = self.branches[name], self.config.training.loss_normalisation
        return branch.share(nats_B, inputs, self.settings_of(branch), normalisation, self.global_batch)

    def inspect(self, optimizer: torch.optim.Optimizer) -> Verdict:
        """The guard's look, after backward and before the weights move: the gradients are clipped, or dropped."""
        record = self.current
        if not self.owners_checked:
            check_owners(self.named, record.activity)
            self.owners_checked = True
        several = len(record.activity.weights) > 1
        likelihoods = any(self.branches[name].is_likelihood for name in record.activity.weights)
        losses = record.losses if several else {trial: nats for (_, trial), nats in record.losses.items()}
        owned = owned_by(optimizer, self.named)
        verdict = self.guard.inspect(owned, losses, self.agreed, self.groups, self.model, likelihoods=likelihoods)
        record.metrics[Metric.GRADIENT_NORM] = verdict.gradient_norm
        for group, norm in verdict.group_norms.items():
            record.metrics[group_gradient_norm(group)] = norm
        record.verdict = verdict
        return verdict

    def finish(self) -> None:
        """Count the step: one that was skipped moves neither the schedule nor the curriculum."""
        record, progress = self.current, self.progress
        assert record.verdict is not None
        progress.step += 1
        self.balance.settle(not record.verdict.skipped)
        if not record.verdict.skipped:
            progress.updates += 1
            progress.trained = sorted({*progress.trained, *record.activity.rates})
            progress.position = progress.position.after_update(self.curriculum.stage(progress.position))
        record.metrics[Metric.STEP_SECONDS] = time.perf_counter() - record.began

    @property
    def current(self) -> StepRecord:
        """The record of the step that has begun."""
        assert self.record is not None  # `begin` comes first
        return self.record

    @property
    def now(self) -> Activity:
        """What the step that has begun computes and moves."""
        return self.current.activity

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def micro_batches(self) -> int:
        """Forward passes of one process in one optimiser step."""
        return self.config.training.gradient_accumulation_steps

    @property
    def global_batch(self) -> int:
        """Trials of one optimiser step over all processes."""
        return self.config.training.batch_size * self.micro_batches * self.processes.count

    def autocast(self) -> torch.autocast:
        """The number format of the run's forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The one optimiser of the run."""
        training = self.config.training
        return build_optimizer(self.model, training.optimizer, by_component=bool(training.stages))

    def agreed(self, here: Iterable[bool]) -> list[bool]:
        """Which of the flags `here` are true in any process."""
        return true_anywhere(self.processes, list(here), self.device)

    def _note(self, computed: ComputedPart) -> None:
        """The part's losses and statistics, as shares of the step's means."""
        record, inputs, summed = self.current, computed.inputs, self.processes.summed
        batch, frames_B = inputs.batch, inputs.encoded.lengths_B
        part: dict[str, float] = {
            Metric.TRAIN_LOSS: float(summed(computed.loss.detach())),
            Metric.PADDING_FRACTION: batch.padding_fraction / self.micro_batches,
        }
        for name, nats_B in ((name, nats_B.detach()) for name, nats_B in computed.nats.items()):
            record.losses.update(zip(((name, trial) for trial in batch.trial_ids), nats_B.tolist(), strict=True))
            part[self.branches[name].metric] = float(summed(nats_B.sum())) / self.global_batch
        if (logits_BSV := inputs.computed("ctc_logits_BSV")) is not None:
            part[Metric.TRAIN_BLANK_FRACTION] = (
                blank_fraction(logits_BSV.detach(), frames_B, self.blank) / self.micro_batches
            )
        if (targets := inputs.computed("teacher_targets")) is not None:
            record.teacher_targets.append(targets)
            valid = float(summed(targets.weights_BS.sum())) / float(summed(frames_B.sum()))
            part[Metric.VALID_FRAME_RATIO] = valid / self.micro_batches
        for name, value in part.items():
            record.metrics[name] = record.metrics.get(name, 0.0) + value


def _copied(batch: Batch) -> Batch:
    """The batch with a signal of its own."""
    return replace(batch, signal=batch.signal.clone())

"""Who owns what, seen while the run goes on: the optimiser, its moments, its schedule, and what is frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.diagnosis.monitor.sample import Sample
from sottovoce.models.compose import DecoderModel
from sottovoce.training.schedules import learning_rate_factor
from sottovoce.training.step import StepComputer

NORM_TOLERANCE: Final = 1.01
"""The norm that the guard used over the norm of the optimiser's own gradients (row B2)."""
RATE_TOLERANCE: Final = 1e-9
"""Relative, between a group's rate and its schedule (row B6)."""
CHECK_EVERY: Final = 100
"""Steps between two looks at who owns what; also after every change of what learns (row B1)."""
STILL_SAMPLES: Final = 3
"""Sampled steps in a row in which a component that should learn did not move at all."""
SCALED: Final = 16.0
"""Times the largest gradient that the CTC head's bias can have; above it the gradients are still scaled (row B4)."""


@dataclass
class Ownership:
    """Rows A5, B1, B2, B4: what should learn is owned, is clipped, and moves."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    learning: list[str] = field(default_factory=list)
    still: dict[str, int] = field(default_factory=dict)

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        learning = sorted(now.activity.rates)
        if learning != self.learning or now.step % CHECK_EVERY == 0:
            self.learning = learning
            yield from self._owners(now.view.computer, now.view.optimizer, learning, now.step)
        verdict = now.view.verdict
        if now.sample is None:
            return
        if now.sample.nonfinite and "poisoned_weights" not in self.reported:
            self.reported.append("poisoned_weights")
            names = ", ".join(now.sample.nonfinite[:3])
            yield monitored("poisoned_weights", f"{names}: not finite after step {now.step}.", now.step)
        if now.skipped or not math.isfinite(verdict.gradient_norm):
            return
        yield from self._norms(now, now.sample)
        yield from self._stillness(now, now.sample)

    def at_begin(self, computer: StepComputer, optimizer: torch.optim.Optimizer, step: int) -> Iterator[Finding]:
        """Before the first step: every parameter that may ever learn is in exactly one group."""
        activity = self.plan.curriculum.activity(computer.progress.position)
        yield from self._owners(computer, optimizer, sorted(activity.rates), step)

    def _owners(
        self, computer: StepComputer, optimizer: torch.optim.Optimizer, learning: list[str], step: int
    ) -> Iterator[Finding]:
        if "stale_optimizer" in self.reported:
            return
        members = [id(p) for group in optimizer.param_groups for p in group["params"]]
        owned = set(members)
        missing = {
            name: p.numel()
            for name, p in computer.model.named_parameters()
            if id(p) not in owned and DecoderModel.component_of(name) in learning
        }
        if missing:
            self.reported.append("stale_optimizer")
            names = ", ".join(list(missing)[:3])
            yield monitored(
                "stale_optimizer",
                f"{len(missing)} of {len(list(computer.model.parameters()))} tensors ({sum(missing.values()):,} "
                f"numbers) shall learn at step {step} but are in no group of the optimiser: {names}.",
                step,
            )
        if len(owned) < len(members) and "ambiguous_parameter_groups" not in self.reported:
            self.reported.append("ambiguous_parameter_groups")
            count = len(members) - len(owned)
            yield monitored("ambiguous_parameter_groups", f"{count} parameters are in two groups.", step)

    def _norms(self, now: ObservedStep, sample: Sample) -> Iterator[Finding]:
        """The norm that was clipped by against the one of what the optimiser owns."""
        verdict = now.view.verdict
        used = min(verdict.gradient_norm, verdict.limit)
        if not math.isfinite(verdict.gradient_norm):
            return
        factor, owned = now.clip_factor, sample.owned_norm
        if sample.unowned and used > NORM_TOLERANCE * owned and "unowned_gradients" not in self.reported:
            self.reported.append("unowned_gradients")
            names = ", ".join(sample.unowned[:3])
            yield monitored(
                "unowned_gradients",
                f"The clip norm was {verdict.gradient_norm:.3g}, the optimiser's own gradients have "
                f"{owned / factor:.3g}: {len(sample.unowned)} parameters that it does not own are counted ({names}).",
                now.step,
                support=0.9 if "stale_optimizer" in self.reported else 1.0,
            )
        if "clip_before_unscale" in self.reported or sample.unowned:
            return
        evidence = self._clip_order(now, sample, factor, used)
        if evidence:
            self.reported.append("clip_before_unscale")
            yield monitored("clip_before_unscale", evidence, now.step)

    def _clip_order(self, now: ObservedStep, sample: Sample, factor: float, used: float) -> str:
        verdict = now.view.verdict
        bound = self._largest_head_bias(now)
        if bound and sample.head_bias / factor > SCALED * bound:
            return (
                f"The gradient of the CTC head's bias is {sample.head_bias / factor:.3g}, but un-scaled it cannot "
                f"exceed {bound:.3g} (two a frame): the norm {verdict.gradient_norm:.3g} that was clipped to "
                f"{verdict.limit:g} is that of scaled gradients."
            )
        if sample.owned_norm and used > 8 * sample.owned_norm:
            return (
                f"The guard left a norm of {used:.3g}, the optimiser was given {sample.owned_norm:.3g}, "
                f"{used / sample.owned_norm:.4g} times less: the gradients were un-scaled after they were clipped."
            )
        unclipped = [
            group
            for group, norm in verdict.group_norms.items()
            if verdict.clipped and factor < 0.9 and sample.group_norms.get(group, 0.0) > NORM_TOLERANCE * norm * factor
        ]
        if unclipped:
            return (
                f"The norm was {verdict.gradient_norm:.3g} and the limit {verdict.limit:g}, but the gradients of "
                f"{', '.join(unclipped)} were not scaled down."
            )
        return ""

    def _largest_head_bias(self, now: ObservedStep) -> float:
        """A softmax's CTC gradient sums to at most two a frame, whatever the model."""
        weight = now.activity.weights.get("ctc", 0.0)
        trials = [trial for name, trial in now.view.record.losses if name == "ctc" and trial in self.plan.trials]
        if not weight or not trials:
            return 0.0
        per_token = self.plan.config.training.loss_normalisation == "per_token"
        sizes = (
            self.plan.frames_of[trial] / (max(1, len(self.plan.trials[trial].labels or ())) if per_token else 1)
            for trial in trials
        )
        return 2 * weight * max(sizes)

    def _stillness(self, now: ObservedStep, sample: Sample) -> Iterator[Finding]:
        for component, moved in sample.moved.items():
            self.still[component] = 0 if moved else self.still.get(component, 0) + 1
            if (
                self.still[component] >= STILL_SAMPLES
                and not sample.low_precision
                and "stale_optimizer" not in self.reported
            ):
                self.reported.append("stale_optimizer")
                yield monitored(
                    "stale_optimizer",
                    f"{component} receives gradient and has a learning rate, but none of its sampled weights has "
                    f"changed in {STILL_SAMPLES} sampled steps up to step {now.step}.",
                    now.step,
                    support=0.9,
                )


@dataclass
class Moments:
    """Rows B5, B6 and I2: the optimiser's counters only grow, rates follow the schedule, steps follow each other."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    """Updates of the first parameter with moments in each group."""
    step: int = 0

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        yield from self._order(now)
        counts = _counts(now.view.optimizer)
        rolled_back = now.view.verdict.action == "roll_back"
        lost = [] if rolled_back else [name for name, count in self.counts.items() if counts.get(name, 0.0) < count]
        if lost and "optimizer_recreated" not in self.reported:
            self.reported.append("optimizer_recreated")
            name = lost[0]
            yield monitored(
                "optimizer_recreated",
                f"The optimiser had updated {name} {self.counts[name]:.0f} times; after step {now.step} its counter "
                f"stands at {counts.get(name, 0.0):.0f}.",
                now.step,
            )
        self.counts, self.step = counts, now.step
        yield from self._rates(now)

    def at_begin(self, computer: StepComputer, optimizer: torch.optim.Optimizer, step: int) -> Iterator[Finding]:
        """A run that continues has its moments and its counters again."""
        counts = _counts(optimizer)
        lost = [name for name, count in self.counts.items() if counts.get(name, 0.0) < count]
        if not lost and self.step == step:
            return
        self.reported.append("incomplete_resume")
        what = (
            f"the moments of {lost[0]} ({self.counts[lost[0]]:.0f} updates) are not there"
            if lost
            else f"it begins at step {step}"
        )
        yield monitored("incomplete_resume", f"The run was saved at step {self.step}; {what}.", step)
        self.counts = counts

    def _order(self, now: ObservedStep) -> Iterator[Finding]:
        """Batch n belongs to step n."""
        parts = now.view.record.parts
        wrong = [part.step for part in parts if part.step != now.step - 1]
        if wrong and "incomplete_resume" not in self.reported:
            self.reported.append("incomplete_resume")
            yield monitored(
                "incomplete_resume",
                f"Step {now.step} was computed from the batch of step {wrong[0] + 1}.",
                now.step,
            )

    def _rates(self, now: ObservedStep) -> Iterator[Finding]:
        if "schedule_not_stepped" in self.reported:
            return
        training = self.plan.config.training
        factor = learning_rate_factor(now.updates, training.scheduler, self.plan.total_steps)
        for group in now.view.optimizer.param_groups:
            component, name = group.get("component"), group.get("name", "")
            peak = training.optimizer.lr
            if name.rpartition(".")[2] == "session":
                peak = training.optimizer.session_lr or peak
            expected = peak * factor * (1.0 if component is None else now.activity.rates.get(component, 0.0))
            if not math.isclose(group["lr"], expected, rel_tol=RATE_TOLERANCE, abs_tol=1e-15):
                self.reported.append("schedule_not_stepped")
                yield monitored(
                    "schedule_not_stepped",
                    f"After {now.updates} updates the schedule gives the group {name} the rate {expected:.4g}; step "
                    f"{now.step} was taken with {group['lr']:.4g}.",
                    now.step,
                )
                return


def _counts(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    found = {}
    for i, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if moments := optimizer.state.get(parameter):
                if "step" in moments:
                    found[str(group.get("name", i))] = float(moments["step"])
                break
    return found

"""How far the steps go: clipping, Adam's moments, the learning rate, the number format, single parameters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.hysteresis import Hysteresis
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.diagnosis.thresholds import FEWEST_SPIKES, INCIDENT_WINDOW, SPIKE, SPIKE_WINDOW
from sottovoce.runs.names import Metric

CLIPPED_SHARE: Final = 0.95
"""Of the steps of a window (row B4)."""
STRONG_CLIP: Final = 0.1
"""A median factor below this takes nine tenths of the gradient away. True Adam does not mind: its step has no scale."""
STANDSTILL: Final = 2e-4
"""Median ‖Δw‖/‖w‖ below which weights hardly move in a run of some thousand steps."""
EPS_REGIME: Final = 0.8
"""S_ε above which Adam is momentum SGD (row D1 says 0.9, measured over all scalars; idle ones lower it)."""
LARGE_UPDATE: Final = 0.04
"""Median ‖Δw‖/‖w‖ of a component in a window. Row D3 proposes 0.02; healthy small runs reach 0.02 in the warm-up, and
layers before a normalisation more: large steps alone are no fault, only with a loss that does not come down."""
NO_BETTER: Final = 0.95
"""Loss over the input-blind floor that a run with large steps must get below."""
RELAPSE: Final = 1.2
"""Times the best median loss of a window."""
SUSPECT: Final = 0.02
"""‖Δw‖/‖w‖ of a step, with which spikes are the learning rate's (row D3)."""
SLOWER: Final = (
    "steps of the usual size; start again, with a longer training.scheduler.warmup_steps if it still jumps. Do not "
    "leave out the batches on which it showed."
)
HUGE_SPIKE: Final = 20.0
"""Times the running median: a spike whatever the learning rate."""
FEWEST_NORMS: Final = 30
"""Norms that a running median needs here."""
GIANT: Final = 5.0
"""√v̂ over the usual gradient, held up by one early step (row D2 proposes 20 over 500 steps)."""
DOMINANCE: Final = 0.5
"""Share of v̂ that one single step may have."""
SWALLOWED: Final = 0.5
"""Share of visible updates that left their weight as it was (row C3)."""
DOMINATING: Final = 0.98
"""Share of the squared gradient norm of one parameter."""


@dataclass
class Updates:
    """Clipping, ε and the learning rate, judged by what they do to the weights."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    """What the last steps' gradients were multiplied by."""
    ratios: list[float] = field(default_factory=list)
    """The largest component's ‖Δw‖/‖w‖ in the last samples, less what weight decay alone does."""
    sensitivity: float = 0.0
    losses: list[float] = field(default_factory=list)
    """CTC losses of the last steps, in nats an utterance."""
    best: float | None = None
    """Lowest median of a window of them."""
    was_large: bool = False
    clipped: Hysteresis = field(init=False)
    large: Hysteresis = field(init=False)
    swallowed: Hysteresis = field(default_factory=lambda: Hysteresis(3, 1.0, 0.0))
    dominated: Hysteresis = field(default_factory=lambda: Hysteresis(8, 1.0, 0.5))

    def __post_init__(self) -> None:
        self.clipped = Hysteresis(self.plan.window, CLIPPED_SHARE)
        self.large = Hysteresis(max(4, self.plan.window // self.plan.sample_every))

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        if now.skipped:
            return
        self.factors = [*self.factors[1 - self.plan.window :], now.clip_factor]
        self.clipped.update(now.clip_factor < STRONG_CLIP)
        if Metric.CTC_LOSS in now.view.record.metrics:
            self.losses = [*self.losses[1 - self.plan.window :], now.view.record.metrics[Metric.CTC_LOSS]]
        sample = now.sample
        if sample is not None and any(group["lr"] for group in now.view.optimizer.param_groups):
            self.sensitivity = sample.sensitivity
            decay = max(group["lr"] * group.get("weight_decay", 0.0) for group in now.view.optimizer.param_groups)
            gradients_part = max(0.0, max(sample.update_ratio.values(), default=0.0) - decay)
            self.ratios = [*self.ratios[-19:], gradients_part]
            yield from self._format(now)
            yield from self._dominating(now)
            yield from self._too_large(now)
        warmed_up = now.updates > self.plan.config.training.scheduler.warmup_steps
        if self.clipped.raised and warmed_up and "clipped_to_standstill" not in self.reported:
            yield from self._standstill(now)

    def _standstill(self, now: ObservedStep) -> Iterator[Finding]:
        movement = statistics.median(self.ratios) if self.ratios else math.inf
        if self.sensitivity < 0.5 and movement > STANDSTILL:
            return  # true Adam divides by the size of its gradients: a tight clip does not slow it down
        self.reported.append("clipped_to_standstill")
        factor = statistics.median(self.factors)
        yield monitored(
            "clipped_to_standstill",
            f"In the last {len(self.factors)} steps to {now.step} the median step kept {factor:.2g} of its gradient "
            f"(limit {now.view.verdict.limit:g}); the weights move by {movement:.1e} of their size a step.",
            now.step,
            support=0.95,
        )

    def _format(self, now: ObservedStep) -> Iterator[Finding]:
        assert now.sample is not None
        change = self.swallowed.update(now.sample.swallowed > SWALLOWED)
        if change == "raised" and "bf16_parameters" not in self.reported:
            self.reported.append("bf16_parameters")
            kind = " and every weight is a bfloat16 number" if now.sample.low_precision else ""
            yield monitored(
                "bf16_parameters",
                f"{now.sample.swallowed:.0%} of the sampled weights did not change at step {now.step} although "
                f"float32 would show their update{kind}.",
                now.step,
                support=1.0 if now.sample.low_precision else 0.8,
            )

    def _dominating(self, now: ObservedStep) -> Iterator[Finding]:
        assert now.sample is not None
        name, share = now.sample.largest
        learning = sum(group > 0 for group in now.sample.group_norms.values())
        change = self.dominated.update(share > DOMINATING and learning > 1)
        if change == "raised" and "dominating_parameter" not in self.reported:
            self.reported.append("dominating_parameter")
            yield monitored(
                "dominating_parameter",
                f"{name} has {share:.1%} of the squared gradient norm at step {now.step}, as in the samples before.",
                now.step,
                support=0.8,
            )

    def _too_large(self, now: ObservedStep) -> Iterator[Finding]:
        self.large.update(self.ratios[-1] > LARGE_UPDATE)
        self.was_large = self.was_large or self.large.raised
        warmed_up = now.updates > self.plan.config.training.scheduler.warmup_steps + 2 * self.plan.window
        if len(self.losses) < self.plan.window or not warmed_up:
            return
        recent, floor = statistics.median(self.losses), self.plan.floor
        self.best = recent if self.best is None else min(self.best, recent)
        no_better = floor is not None and recent >= NO_BETTER * floor
        if not self.was_large or "learning_rate_too_high" in self.reported:
            return
        if no_better or recent > RELAPSE * self.best:
            self.reported.append("learning_rate_too_high")
            rate = max(group["lr"] for group in now.view.optimizer.param_groups)
            against = f"the input-blind floor is {floor:.3g}" if no_better else f"it had been {self.best:.3g}"
            yield monitored(
                "learning_rate_too_high",
                f"Steps change the weights by {max(self.ratios):.0%} of their size (usual: below 2 %), with a rate of "
                f"up to {self.plan.config.training.optimizer.lr:g}, now {rate:.3g}; at step {now.step} the loss is "
                f"{recent:.3g}, {against}.",
                now.step,
                support=0.9,
                override=f"training.optimizer.lr={self._slower(rate):.1g}",
                fix=SLOWER,
            )

    def _slower(self, rate: float) -> float:
        """The rate with which steps have the usual size, and at most half of what was asked for."""
        asked = self.plan.config.training.optimizer.lr
        return min(asked / 2, rate * SUSPECT / max(self.ratios))


@dataclass
class Norms:
    """Gradient norms against their running median: spikes, and what a giant one leaves in Adam's moments."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Before clipping."""
    spikes: list[int] = field(default_factory=list)
    """Steps with a norm above four running medians."""
    huge: list[int] = field(default_factory=list)
    second_moment: float = 0.0
    """v of the whole gradient, as clipped."""
    largest_part: float = 0.0
    """Of v, what one single step has put there."""
    updates: int = 0
    sensitivity: float = 0.0
    movement: float = 0.0
    """The largest component's ‖Δw‖/‖w‖ in the last sample."""
    stale: Hysteresis = field(init=False)

    def __post_init__(self) -> None:
        self.stale = Hysteresis(self.plan.window)

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        norm = now.view.verdict.gradient_norm
        if now.sample is not None:
            self.sensitivity = now.sample.sensitivity
            self.movement = max(now.sample.update_ratio.values(), default=0.0)
        if not math.isfinite(norm) or (now.skipped and now.view.verdict.cause != "gradient_spike"):
            return
        yield from self._spikes(now, norm)
        self.norms = [*self.norms[1 - INCIDENT_WINDOW :], norm]
        if not now.skipped:
            yield from self._memory(now, norm * now.clip_factor)

    def _spikes(self, now: ObservedStep, norm: float) -> Iterator[Finding]:
        if len(self.norms) < FEWEST_NORMS:
            return
        median = statistics.median(self.norms)
        recent = now.step - INCIDENT_WINDOW
        if norm > SPIKE * median and self._after_warmup(now):
            self.spikes = [*(s for s in self.spikes if s > now.step - SPIKE_WINDOW), now.step]
            if (
                len(self.spikes) >= FEWEST_SPIKES
                and self.movement > SUSPECT
                and "learning_rate_too_high" not in self.reported
            ):
                self.reported.append("learning_rate_too_high")
                yield monitored(
                    "learning_rate_too_high",
                    f"Gradient norms above {SPIKE:g} running medians at steps {', '.join(map(str, self.spikes))}, "
                    f"while steps change the weights by {self.movement:.1%} of their size.",
                    now.step,
                    support=0.75,
                )
        if norm > HUGE_SPIKE * median:
            self.huge = [*(s for s in self.huge if s > recent), now.step]
            in_a_row = len(self.huge) > 1 and self.huge[-2] == now.step - 1
            if (len(self.huge) >= FEWEST_SPIKES or in_a_row) and "gradient_spike" not in self.reported:
                self.reported.append("gradient_spike")
                yield monitored(
                    "gradient_spike",
                    f"Gradient norms at steps {', '.join(map(str, self.huge))}: the last is {norm:.3g}, "
                    f"{norm / median:.0f} times the running median.",
                    now.step,
                    support=0.8,
                )

    def _after_warmup(self, now: ObservedStep) -> bool:
        return now.updates > self.plan.config.training.scheduler.warmup_steps

    def _memory(self, now: ObservedStep, norm: float) -> Iterator[Finding]:
        beta2 = self.plan.config.training.optimizer.beta2
        part = (1 - beta2) * norm * norm
        self.second_moment = beta2 * self.second_moment + part
        self.largest_part = max(beta2 * self.largest_part, part)
        self.updates += 1
        if not self.second_moment or self.sensitivity > 0.5:
            return
        root = math.sqrt(self.second_moment / (1 - beta2**self.updates))
        usual = statistics.median(self.norms[-50:])
        single = self.largest_part / self.second_moment
        change = self.stale.update(root > GIANT * usual and single > DOMINANCE)
        if change == "raised" and "second_moment_memory" not in self.reported:
            self.reported.append("second_moment_memory")
            yield monitored(
                "second_moment_memory",
                f"At step {now.step} Adam divides by {root:.3g} where gradients have {usual:.3g}: {single:.0%} of its "
                f"second moment comes from one step (β2 = {beta2:g} forgets in {1 / (1 - beta2):.0f} steps).",
                now.step,
                support=0.9,
            )

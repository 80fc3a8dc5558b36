"""How far the weights can get: a rate too low to leave the start, a decay that takes back what was learnt."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.diagnosis.thresholds import AT_FLOOR, OFF_FLOOR
from sottovoce.runs.names import Metric

NEARBY: Final = 0.5
"""Largest sampled ‖Δw‖/‖w‖ times the run's steps: below it the weights end near where they began, whatever the path.
Healthy small runs have 4 and more (measured: 240 steps of up to 0.02)."""
SMALL_STEP: Final = 1e-3
"""And steps above it are no fault of the rate: the run is short."""
USUAL_STEP: Final = 0.02
"""Largest ‖Δw‖/‖w‖ of a healthy small run's peak (row D3)."""
HIGHEST_RATE: Final = 5e-3
"""No override goes beyond it: what recurrent layers bear with a small ε (row D1)."""
TRUE_ADAM: Final = 0.5
"""S_ε below which the rate alone decides the size of a step."""
FORGOTTEN: Final = 1.0
"""Σ lr·decay from which the start is forgotten: e^-1 of it is left."""
SHRUNK: Final = 0.5
"""Size of the weights over that at the start: too high a rate makes them grow instead."""


@dataclass
class Reach:
    """Rate and decay against the size of the weights, where the loss is no better than that of constant answers."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """CTC losses of the last window, in nats an utterance."""
    farthest: float = 0.0
    """Largest ‖Δw‖/‖w‖ of any component in a sample."""
    rate: float = 0.0
    """Highest learning rate so far."""
    decayed: float = 0.0
    """Σ lr·decay of the steps so far."""
    strongest: float = 0.0
    """The largest lr·decay of them."""
    start: dict[str, float] = field(default_factory=dict)
    """Size of each component's matrices when they were sampled first."""
    shrunk: float = 1.0
    """Their size now over that."""
    rate_decides: bool = True
    """In the last sample neither ε nor the number format shortened the steps."""

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        metrics, sample = now.view.record.metrics, now.sample
        if now.skipped:
            return
        groups = now.view.optimizer.param_groups
        self.rate = max(self.rate, *(group["lr"] for group in groups))
        decay = max(group["lr"] * group.get("weight_decay", 0.0) for group in groups)
        self.decayed, self.strongest = self.decayed + decay, max(self.strongest, decay)
        if sample is not None:
            self.farthest = max(self.farthest, *sample.update_ratio.values(), 0.0)
            self.start = {**sample.size, **self.start}
            before = math.hypot(*(self.start[component] for component in sample.size))
            self.shrunk = math.hypot(*sample.size.values()) / before if before else 1.0
            self.rate_decides = sample.sensitivity < TRUE_ADAM and sample.swallowed < 0.5
        if Metric.CTC_LOSS not in metrics or self.plan.floor is None:
            return
        self.losses = [*self.losses[1 - self.plan.window :], metrics[Metric.CTC_LOSS]]
        if len(self.losses) == self.plan.window:
            yield from self._judge(now, statistics.median(self.losses), self.plan.floor)

    def _judge(self, now: ObservedStep, recent: float, floor: float) -> Iterator[Finding]:
        warmup, window = self.plan.config.training.scheduler.warmup_steps, self.plan.window
        level = f"{recent:.3g}, {recent / floor:.2f} of the input-blind floor {floor:.3g}"
        at = f"At step {now.step} the CTC loss is {level}"
        due = max(warmup + window, min(self.plan.total_steps // 2, warmup + self.plan.patience))
        path = self.farthest * self.plan.total_steps
        small = self.rate_decides and self.rate > 0 and self.farthest < SMALL_STEP and path < NEARBY
        if now.updates >= due and small and recent > OFF_FLOOR * floor:
            faster = f"training.optimizer.lr={self._faster():.1g}"
            fix = "steps of the usual size; start again."
            yield from self._once("learning_rate_too_low", f"{at}. {self._path(path)}", now.step, faster, fix)
        strong = self.decayed > FORGOTTEN and self.shrunk < SHRUNK
        if now.updates > warmup + 2 * window and strong and recent > AT_FLOOR * floor:
            taken = (
                f"up to {self.strongest:.1%} of them in a step, {1 - math.exp(-self.decayed):.0%} of the start so far"
            )
            evidence = (
                f"{at}. The weights have {self.shrunk:.0%} of their size at the start: weight decay takes "
                f"{taken}, with a rate of up to {self.rate:g}."
            )
            yield from self._once("weight_decay_too_strong", evidence, now.step)

    def _path(self, path: float) -> str:
        return (
            f"With a rate of up to {self.rate:g} a step changes the weights by {self.farthest:.1e} of their size at "
            f"most: in all {self.plan.total_steps} steps by no more than {path:.1%}."
        )

    def _faster(self) -> float:
        """The rate with which steps have the usual size."""
        return min(HIGHEST_RATE, self.rate * USUAL_STEP / self.farthest) if self.farthest else HIGHEST_RATE / 5

    def _once(self, code: str, evidence: str, step: int, override: str = "", fix: str = "") -> Iterator[Finding]:
        if code not in self.reported:
            self.reported.append(code)
            yield monitored(code, evidence, step, support=0.95, override=override, fix=fix)

"""Blanks: the plateau that every healthy CTC run passes, and the collapse that looks like it.

What tells them apart is not how many blanks come out but the loss: below the input-blind floor F and falling, the
model learns; at F it does not look at its input; below F and flat, its steps are too small; back at blanks after
having left them, something threw it there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.hysteresis import Hysteresis
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.diagnosis.monitor.updates import EPS_REGIME, RELAPSE
from sottovoce.diagnosis.thresholds import ABOVE_FLOOR, AT_FLOOR, BLANK, LEFT, OFF_FLOOR
from sottovoce.runs.names import Metric

FLAT: Final = 0.02
"""A window whose loss fell by less than this share is flat."""


@dataclass
class Blanks:
    """Rows D1, D5 and D6, from the share of blanks, the CTC loss, its slope and its floor."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """CTC loss in nats an utterance, of the last steps that count."""
    blanks: Hysteresis = field(init=False)
    """For as long as a slow start is nobody's fault."""
    back: Hysteresis = field(init=False)
    """For a window: what a relapse needs."""
    began: int | None = None
    """Step at which the present stretch of blanks began."""
    left_at: int | None = None
    """Step at which blanks were left for the first time."""
    best: float | None = None
    """Lowest median loss of a window so far."""
    at_floor_since: int | None = None
    """Step since which the loss has been that of a model that does not look at its input."""
    sensitivity: float = 0.0
    movement: float = 0.0

    def __post_init__(self) -> None:
        self.blanks, self.back = Hysteresis(self.plan.patience), Hysteresis(self.plan.window)

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        if now.sample is not None and now.sample.update_ratio:
            self.sensitivity = now.sample.sensitivity
            self.movement = max(now.sample.update_ratio.values())
        metrics = now.view.record.metrics
        if (
            now.skipped
            or not {Metric.TRAIN_BLANK_FRACTION, Metric.CTC_LOSS} <= metrics.keys()
            or self.plan.floor is None
        ):
            return
        blank = metrics[Metric.TRAIN_BLANK_FRACTION]
        self.losses = [*self.losses[1 - self.plan.patience :], metrics[Metric.CTC_LOSS]]
        self._note_blanks(now, blank)
        yield from self._ignores_input(now)
        if len(self.losses) < self.plan.patience or now.updates < self._grace:
            return
        recent = statistics.median(self.losses[-self.plan.window :])
        self.best = recent if self.best is None else min(recent, self.best)
        stuck = recent >= AT_FLOOR * self.plan.floor
        yield from self._eps(now, recent, stuck)
        relapse = self.back.raised and self.left_at is not None and recent > RELAPSE * self.best
        if self.blanks.raised or relapse:
            yield from self._verdict(now, recent, stuck, relapse)

    @property
    def _grace(self) -> int:
        """Updates before which a slow start means nothing."""
        return self.plan.config.training.scheduler.warmup_steps + self.plan.patience

    def _note_blanks(self, now: ObservedStep, blank: float) -> None:
        for condition in (self.blanks, self.back):
            condition.update(blank >= (LEFT if condition.raised else BLANK))
        if blank < BLANK:
            self.began = None
        elif self.began is None:
            self.began = now.step
        if blank <= LEFT and self.left_at is None and now.updates > self.plan.window and self.fallen < -FLAT:
            self.left_at = now.step

    @property
    def fallen(self) -> float:
        """Change of the loss over what is remembered, as a share: negative where it falls."""
        half = len(self.losses) // 2
        if half < 2:
            return 0.0
        before, after = statistics.median(self.losses[:half]), statistics.median(self.losses[half:])
        return (after - before) / before if before else 0.0

    def _ignores_input(self, now: ObservedStep) -> Iterator[Finding]:
        """The loss stays at its floor, whatever is emitted: row D6 a, also where the commonest symbols are repeated."""
        if len(self.losses) < self.plan.window or self.plan.floor is None:
            return
        recent = statistics.median(self.losses[-self.plan.window :])
        level = recent / self.plan.floor
        warming_up = now.updates <= self.plan.config.training.scheduler.warmup_steps
        if warming_up or not OFF_FLOOR <= level <= ABOVE_FLOOR:
            self.at_floor_since = None
        elif level >= AT_FLOOR and self.at_floor_since is None:
            self.at_floor_since = now.step
        if self.at_floor_since is None or level < AT_FLOOR or self.fallen < -FLAT:
            return
        lasting = now.step - self.at_floor_since >= self.plan.collapse_steps
        if lasting and not self.blanks.raised and "input_ignored" not in self.reported:
            self.reported.append("input_ignored")
            yield monitored(
                "input_ignored",
                f"The CTC loss is {recent:.3g}, {recent / self.plan.floor:.2f} of the input-blind floor "
                f"{self.plan.floor:.3g}, and has been at it since step {self.at_floor_since}: constant answers do as "
                "well.",
                now.step,
                support=0.9,
            )

    def _eps(self, now: ObservedStep, recent: float, stuck: bool) -> Iterator[Finding]:
        """ε far above the gradients, and a run that does not get anywhere."""
        slow = self.blanks.raised or stuck or recent > 0.9 * statistics.median(self.losses[: self.plan.window])
        if self.sensitivity < EPS_REGIME or not slow or "adam_eps_regime" in self.reported:
            return
        self.reported.append("adam_eps_regime")
        optimizer = self.plan.config.training.optimizer
        yield monitored(
            "adam_eps_regime",
            f"S_ε = {self.sensitivity:.2f} at step {now.step}: nearly all gradients are far below ε = "
            f"{optimizer.eps:g}, so this is momentum SGD with rate lr/ε = {optimizer.lr / optimizer.eps:.3g}. The "
            f"weights move by {self.movement:.1e} of their size a step, the loss is {recent:.3g}.",
            now.step,
            support=0.9,
        )

    def _verdict(self, now: ObservedStep, recent: float, stuck: bool, relapse: bool) -> Iterator[Finding]:
        floor, duration = self.plan.floor, now.step - (self.began or now.step)
        assert floor is not None
        slope = self.fallen
        what = (
            f"At least {BLANK:.0%} of frames are blank for {duration} steps to {now.step}; loss {recent:.3g}, "
            f"{recent / floor:.2f} of the input-blind floor {floor:.3g}, changed by {slope:+.1%} over the last "
            f"{len(self.losses)} steps"
        )
        lasting = duration >= self.plan.collapse_steps
        if relapse:
            yield from self._collapse(now, f"{what}. It had left the blanks at step {self.left_at}: a relapse.", 0.85)
        elif lasting and stuck and slope > -FLAT:
            why = " Nothing of the input is used."
            yield from self._collapse(now, f"{what}.{why}", 0.6 if self.sensitivity > EPS_REGIME else 0.9)
        elif duration >= self.plan.slow_exit_steps and slope > -FLAT:
            why = f" The exit is slow: the weights move by {self.movement:.1e} of their size a step."
            yield from self._collapse(now, f"{what}.{why}", 0.6 if self.sensitivity > EPS_REGIME else 0.8)
        elif slope <= -FLAT and "blank_plateau" not in self.reported:
            self.reported.append("blank_plateau")
            yield monitored("blank_plateau", f"{what}. {self._exit(recent, slope)}", now.step)

    def _exit(self, recent: float, slope: float) -> str:
        """When blanks may be left: somewhere between a third and a twentieth of the floor, in what was measured."""
        assert self.plan.floor is not None
        pace = -slope * recent / max(1, len(self.losses) // 2)
        first = max(0.0, (recent - 0.3 * self.plan.floor) / pace)
        last = max(first, (recent - 0.05 * self.plan.floor) / pace)
        return f"At this pace they are left in {first:.0f} to {last:.0f} steps."

    def _collapse(self, now: ObservedStep, evidence: str, support: float) -> Iterator[Finding]:
        if "blank_collapse" in self.reported:
            return
        self.reported.append("blank_collapse")
        yield monitored("blank_collapse", evidence, now.step, support=support)

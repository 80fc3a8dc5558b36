"""What validations say while the run goes on: worse with a high rate, worse with a falling loss, a wrong best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.diagnosis.thresholds import AT_FLOOR, EVALUATIONS, HIGH_RATE, LEARNT_SHARE
from sottovoce.runs.names import VAL, Metric, validation_rate
from sottovoce.training.step import StepComputer

NOISE_WIDTHS: Final = 2.0
"""Standard errors of a rate, counted label by label, that a change must exceed; errors come in clusters."""
GAP: Final = 0.5
"""Training loss over validation loss below which the model has learnt its training trials by heart."""
FEWEST_VALIDATIONS: Final = 2
"""Before nothing carries over for sure."""


@dataclass
class Validations:
    """Rows D4, G7 and G9, and overfitting."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    best_by: str = ""
    """Metric, decoder and stage that the values below belong to."""
    values: list[list[float]] = field(default_factory=list)
    """Step, metric (smaller is better), validation loss, training loss before it."""
    losses: list[float] = field(default_factory=list)
    """Training losses since the validation before."""
    factor: float = 0.0
    """The learning rate over its peak."""
    stage: str = ""
    pending: list[float] = field(default_factory=list)
    """The last validation's step and metric, until the run has chosen its best checkpoint."""

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        yield from self.chosen(now.view.computer)
        if now.view.stage != self.stage:
            self.stage, self.values = now.view.stage, []
        groups = now.view.optimizer.param_groups
        self.factor = max((group["lr"] / group["peak_lr"] for group in groups if "peak_lr" in group), default=0.0)
        if not now.skipped and Metric.CTC_LOSS in now.view.record.metrics:
            self.losses.append(now.view.record.metrics[Metric.CTC_LOSS])

    @property
    def metric(self) -> str:
        """The name of what selects."""
        stage = self.plan.stage(self.stage).config if self.stage else None
        return validation_rate((stage.metric if stage else None) or self.plan.config.training.selection_metric)

    def validated(self, step: int, values: Mapping[str, float]) -> Iterator[Finding]:
        """After every validation."""
        value = values.get(self.metric)
        if value is None or not math.isfinite(value):
            if "metric_missing" not in self.reported:
                self.reported.append("metric_missing")
                there = ", ".join(sorted(name.removeprefix(VAL) for name in values))
                yield monitored(
                    "metric_missing",
                    f"{self.metric} is {'absent' if value is None else value} at step {step}; there are {there}.",
                    step,
                )
            return
        value = -value if self.metric == Metric.VAL_WRA else value
        self.pending = [step, value]
        train = statistics.median(self.losses) if self.losses else math.nan
        self.losses = []
        if math.isfinite(train):
            self.values.append([step, value, values.get(Metric.VAL_LOSS, math.nan), train])
            yield from self._degradation(step) if self._below_floor else self._unlike(step, train)

    @property
    def _below_floor(self) -> bool:
        """Some validation was better than answers that ignore the signal; taken for granted where F is not known."""
        floor = self.plan.val_floor
        return floor is None or any(entry[2] < AT_FLOOR * floor for entry in self.values)

    def _unlike(self, step: int, train: float) -> Iterator[Finding]:
        """The training trials are being learnt, and what is learnt does not carry over at all."""
        floor, val_floor = self.plan.floor, self.plan.val_floor
        if floor is None or len(self.values) < FEWEST_VALIDATIONS or train > LEARNT_SHARE * floor:
            return
        yield from self._once(
            "validation_unlike_training",
            f"The training loss is {train:.3g} at step {step}, {train / floor:.2f} of the input-blind floor "
            f"{floor:.3g}; none of {len(self.values)} validations is below the floor {val_floor:.3g} of its trials: "
            f"{', '.join(f'{entry[2]:.3g}' for entry in self.values[-EVALUATIONS:])} in the last ones.",
            step,
            0.9,
        )

    def _degradation(self, step: int) -> Iterator[Finding]:
        best = min(self.values, key=lambda entry: entry[1])
        later = [entry for entry in self.values if entry[0] > best[0]]
        if len(later) < EVALUATIONS:
            return
        last = later[-EVALUATIONS:]
        if not all(entry[1] > best[1] + self._noise(best[1]) for entry in last):
            return
        train, val_loss = last[-1][3], last[-1][2]
        name = self.metric.removeprefix(VAL)
        what = (
            f"{name} {abs(best[1]):.3f} at step {best[0]:.0f}, {', '.join(f'{abs(e[1]):.3f}' for e in last)} since; "
            f"training loss {best[3]:.3g} then, {train:.3g} now; validation loss {best[2]:.3g} then, {val_loss:.3g} now"
        )
        if train < best[3] and train < GAP * val_loss:
            yield from self._once("overfitting", f"{what}.", step, 0.85)
        elif self.factor >= HIGH_RATE and train <= 1.1 * best[3]:
            yield from self._once(
                "schedule_degradation", f"{what}; the rate is {self.factor:.0%} of its peak.", step, 0.7
            )
        elif self.factor >= HIGH_RATE and train > 1.2 * best[3]:
            yield from self._once(
                "learning_rate_too_high", f"{what}; the rate is {self.factor:.0%} of its peak.", step, 0.7
            )

    def _noise(self, rate: float) -> float:
        if self.metric == Metric.VAL_WRA or not self.plan.num_val_labels:
            return 0.05
        p = min(max(rate, 0.01), 0.99)
        return NOISE_WIDTHS * math.sqrt(2 * p * (1 - p) / self.plan.num_val_labels)

    def chosen(self, computer: StepComputer) -> Iterator[Finding]:
        """Is the best checkpoint the best by the metric itself?"""
        if not self.pending:
            return
        progress = computer.progress
        if progress.best_by != self.best_by:
            self.best_by, self.seen_best = progress.best_by, []
        self.seen_best = [*self.seen_best, self.pending]
        self.pending = []
        best_step, lowest = min(self.seen_best, key=lambda entry: entry[1])
        kept = next((value for step, value in self.seen_best if step == progress.best_step), None)
        wrong = kept is None and progress.best is not None and progress.best[0] > lowest
        if (wrong or (kept is not None and kept > lowest)) and "moving_average_checkpoint" not in self.reported:
            self.reported.append("moving_average_checkpoint")
            step = int(self.seen_best[-1][0])
            yield monitored(
                "moving_average_checkpoint",
                f"The best checkpoint is that of step {progress.best_step}, {self.metric} "
                f"{abs(kept) if kept is not None else math.nan:.4f}; step {best_step:.0f} had {abs(lowest):.4f}.",
                step,
            )

    seen_best: list[list[float]] = field(default_factory=list)
    """Step and metric of all validations by the same metric and decoder."""

    def _once(self, code: str, evidence: str, step: int, support: float) -> Iterator[Finding]:
        if code not in self.reported:
            self.reported.append(code)
            yield monitored(code, evidence, step, support=support)

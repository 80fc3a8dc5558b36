"""How fast the steps follow each other: waiting for data, and slowing down."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.hysteresis import Hysteresis
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.runs.names import Metric

WAITING: Final = 0.6
"""Share of its time for which a step waited for its batch."""
LEAST_WAIT_SECONDS: Final = 0.05
"""Shorter waits are nobody's problem."""
SLOWER: Final = 4.0
"""Times the usual step: other programs alone make a factor of two or three."""
LEAST_SLOWDOWN_SECONDS: Final = 0.05


@dataclass
class Pace:
    """Data starvation and drops of throughput."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    stage: str = ""
    usual: list[float] = field(default_factory=list)
    """Seconds of the stage's first steps."""
    recent: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    starved: Hysteresis = field(init=False)
    slow: Hysteresis = field(init=False)

    def __post_init__(self) -> None:
        self.starved = Hysteresis(max(20, self.plan.window // 2))
        self.slow = Hysteresis(max(20, self.plan.window // 2))

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        kind = f"{now.view.stage} {' '.join(now.activity.weights)}"
        if kind != self.stage:
            self.stage, self.usual, self.recent = kind, [], []
            self.slow.forget()
        seconds = now.view.record.metrics.get(Metric.STEP_SECONDS)
        if seconds is None:
            return
        yield from self._waits(now, seconds)
        yield from self._slows(now, seconds)

    def _waits(self, now: ObservedStep, seconds: float) -> Iterator[Finding]:
        wait = now.view.record.metrics.get(Metric.DATA_WAIT_SECONDS)
        if wait is None:
            return
        self.waits = [*self.waits[1 - self.starved.window :], wait]
        starved = wait > LEAST_WAIT_SECONDS and wait > WAITING * (wait + seconds)
        if self.starved.update(starved) == "raised" and "data_starvation" not in self.reported:
            self.reported.append("data_starvation")
            median = statistics.median(self.waits)
            yield monitored(
                "data_starvation",
                f"In the last {len(self.waits)} steps to {now.step} the median step waited {median * 1000:.0f} ms for "
                f"its batch and computed for {seconds * 1000:.0f} ms.",
                now.step,
                support=0.9,
            )

    def _slows(self, now: ObservedStep, seconds: float) -> Iterator[Finding]:
        if len(self.usual) < self.slow.window:
            self.usual.append(seconds)
            return
        usual = statistics.median(self.usual)
        self.recent = [*self.recent[1 - self.slow.window :], seconds]
        slow = seconds > SLOWER * usual and seconds - usual > LEAST_SLOWDOWN_SECONDS
        if self.slow.update(slow) == "raised" and "throughput_drop" not in self.reported:
            self.reported.append("throughput_drop")
            yield monitored(
                "throughput_drop",
                f"The median of the last {len(self.recent)} steps to {now.step} took "
                f"{statistics.median(self.recent) * 1000:.0f} ms, of the first ones of {now.view.stage} "
                f"{usual * 1000:.0f} ms.",
                now.step,
                support=0.8,
            )

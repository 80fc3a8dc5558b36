"""Learning-rate schedules: pure functions of the number of optimiser steps already taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sottovoce.core.errors import ConfigurationError


@dataclass(frozen=True)
class SchedulerConfig:
    """Factor on every group's peak learning rate."""

    name: str = "cosine_with_warmup"
    """`cosine_with_warmup` or `constant` (after the warm-up)."""
    warmup_steps: int = 1000
    """Linear rise from 0; the very first step has rate 0, as in the official T15 trainer."""
    max_steps: int | None = None
    """Step at which the cosine reaches its floor; absent: the last step of the run."""
    min_lr_ratio: float = 0.02
    """Floor as a share of the peak."""

    def __post_init__(self) -> None:
        if self.name not in ("cosine_with_warmup", "constant"):
            raise ConfigurationError(f"training.scheduler.name={self.name}: choose cosine_with_warmup or constant")
        if self.warmup_steps < 0 or not 0 <= self.min_lr_ratio <= 1:
            raise ConfigurationError(
                "training.scheduler: warmup_steps must be at least 0 and min_lr_ratio in [0, 1]; "
                f"got {self.warmup_steps} and {self.min_lr_ratio}"
            )
        if self.max_steps is not None and self.max_steps <= self.warmup_steps:
            raise ConfigurationError(
                f"training.scheduler.max_steps={self.max_steps} must be larger than warmup_steps={self.warmup_steps}"
            )


def learning_rate_factor(step: int, config: SchedulerConfig, total_steps: int) -> float:
    """Factor for the step taken after `step` earlier ones (nejm-brain-to-text `rnn_trainer.py`).

    With w warm-up steps, D the end and r the floor: s/w; then r + (1-r)·½(1 + cos(π(s-w)/(D-w))); then r.

    >>> official = SchedulerConfig(max_steps=120_000)
    >>> [round(0.005 * learning_rate_factor(s, official, 120_000), 6) for s in (0, 500, 1000, 10_000, 60_500, 120_000)]
    [0.0, 0.0025, 0.005, 0.004931, 0.00255, 0.0001]
    """
    warmup, end, floor = config.warmup_steps, config.max_steps or total_steps, config.min_lr_ratio
    if step < warmup:
        return step / warmup
    if config.name == "constant":
        return 1.0
    if step >= end:
        return floor
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (end - warmup)))

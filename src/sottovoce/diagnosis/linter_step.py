"""How far a step goes: Adam's ε, the clip, the learning rate, the decay and the schedule act together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sottovoce.core.findings import Finding, Severity
from sottovoce.diagnosis.causes import linted
from sottovoce.diagnosis.thresholds import LARGE_EPS
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import Prepared
from sottovoce.training.schedules import SchedulerConfig, learning_rate_factor

MOMENTUM_EPS: Final = 1e-2
"""Row D1's pair: such an ε with a clip below a hundredth of ε·√N and a rate below 5e-3."""
SMALL_CLIP: Final = 0.01
LOW_RATE: Final = 5e-3
SMALL_EPS: Final = 1e-6
"""The reverse pair: true Adam, and a rate above 1e-3 for a recurrence. Mostly fine: extreme ones are told."""
EXTREME_RATE: Final = 0.03
"""Every scalar of a true Adam moves by up to the rate in a step; weights are of the order of 0.1."""
LEAST_TRAVEL: Final = 50.0
"""Σ of rates over the run, divided by ε: the path in units of the clipped gradient that a momentum-SGD run may go.
The official T15 run has 0.05 · 120,000 · ½ = 3,000; toy runs of 300 steps (8 and less) do not leave the blanks."""
TIGHT: Final = 1e-3
"""Clip as a share of the norm at initialisation below which the clip decides the step."""
USUAL_NORM: Final = 5.0
"""Median norm of a CTC run in nats an utterance; a token's share of it (about 1/25) with `per_token`."""
USUAL_LABELS: Final = 25
LEAST_REACH: Final = 0.01
"""Σ of rates: no scalar of a true Adam moves farther; weights are of the order of 0.1."""
USUAL_RATE: Final = 1e-3
"""Of GRUs and state-space models with true Adam: 0.001 to 0.005 (row D1)."""
SHORT_RUN: Final = 500
"""Steps that a shorter run is given here: that it does not get far is not the rate's fault."""
FORGOTTEN: Final = 1.0
"""Σ of rates times the decay, from which e^-1 of the start is left at the end."""
BRIEF_MEMORY: Final = 100
"""1/(rate·decay) steps is what weights remember; fewer are hardly more than the last batches."""


def effective_step(config: RunConfig, prepared: Prepared | None, steps: int | None) -> Iterator[Finding]:
    """What these settings make of a gradient; `steps` of the run where they are known."""
    yield from _epsilon(config, prepared, steps)
    yield from _clip(config)
    yield from _reach(config, steps)


def _epsilon(config: RunConfig, prepared: Prepared | None, steps: int | None) -> Iterator[Finding]:
    """Row D1: ε against the gradients that the clip allows, and how far the run can then go."""
    training, adam = config.training, config.training.optimizer
    clip = training.max_grad_norm
    if adam.eps >= LARGE_EPS:
        scalars = None if prepared is None else sum(p.numel() for p in prepared.model.parameters())
        regime = f"ε = {adam.eps:g}, learning rate {adam.lr:g}, clip {clip:g}: momentum SGD with rate lr/ε = "
        regime += f"{adam.lr / adam.eps:.3g}"
        if scalars is not None:
            root = adam.eps * math.sqrt(scalars)
            regime += f"; ε·√N = {root:.3g} for {scalars:,} numbers"
            if clip:
                largest = adam.lr / adam.eps * clip
                regime += f", largest step {largest:.3g} (rms {largest / math.sqrt(scalars):.1e})"
        travel = math.inf if steps is None else adam.lr / adam.eps * steps * min(1.0, (clip or 10.0) / 10.0) / 2
        tight = scalars is None or (bool(clip) and clip < SMALL_CLIP * adam.eps * math.sqrt(scalars))
        if adam.eps >= MOMENTUM_EPS and travel < LEAST_TRAVEL:
            yield linted("adam_eps_regime", f"{regime}. In {steps} steps that does not get far.", "warning")
        elif adam.eps >= MOMENTUM_EPS and tight and adam.lr < LOW_RATE:
            yield linted("adam_eps_regime", f"{regime}. Runs like this stay at the blanks for long.", "warning")
        else:
            yield linted("adam_eps_regime", f"{regime}. Clip, loss scale and batch size all act on the step.", "note")
    elif adam.eps <= SMALL_EPS and adam.lr > EXTREME_RATE:
        yield linted(
            "effective_step",
            f"learning rate {adam.lr:g} with ε = {adam.eps:g}: weights may move by {adam.lr:g} in a step, about their "
            "own size.",
            override=f"training.optimizer.lr={LOW_RATE:g}",
            fix="or ε = 0.1, with which such a rate is usual",
        )


def _clip(config: RunConfig) -> Iterator[Finding]:
    """A clip that leaves nothing of the gradient, in a regime where that matters."""
    training, adam = config.training, config.training.optimizer
    if not training.max_grad_norm:
        return
    usual = USUAL_NORM / (USUAL_LABELS if training.loss_normalisation == "per_token" else 1)
    kept = training.max_grad_norm / usual
    scale_free = adam.eps <= SMALL_EPS
    if kept < (TIGHT if scale_free else 0.25):
        evidence = (
            f"training.max_grad_norm={training.max_grad_norm:g}, where gradients of this loss usually have a norm of "
            f"about {usual:.2g}: a step keeps {kept:.1%} of its gradient"
        )
        severity: Severity = "note" if scale_free else "warning"
        yield linted("clipped_to_standstill", f"{evidence}, with ε = {adam.eps:g}.", severity)


def _reach(config: RunConfig, steps: int | None) -> Iterator[Finding]:
    """How far the rate takes a weight in the whole run, and how much of that the decay takes back."""
    training, adam = config.training, config.training.optimizer
    if steps is None:
        return
    planned = max(steps, SHORT_RUN)
    path = adam.lr * _mean_factor(training.scheduler, planned) * planned
    if path < LEAST_REACH and adam.eps < LARGE_EPS:
        yield linted(
            "learning_rate_too_low",
            f"training.optimizer.lr={adam.lr:g}: over {planned} steps the rates add up to {path:.1e}, and no weight "
            "moves farther; weights are of the order of 0.1.",
            "warning",
            override=f"training.optimizer.lr={USUAL_RATE:g}",
            fix="the order of what works with a small epsilon",
        )
    total = adam.lr * adam.weight_decay * _mean_factor(training.scheduler, steps) * steps
    if total > FORGOTTEN and adam.lr * adam.weight_decay * BRIEF_MEMORY > 1:
        yield linted(
            "weight_decay_too_strong",
            f"training.optimizer.weight_decay={adam.weight_decay:g} with lr={adam.lr:g}: weights forget in "
            f"{1 / (adam.lr * adam.weight_decay):.0f} steps and stay below {1 / adam.weight_decay:.2g}; rate · decay "
            f"adds up to {total:.2g} over {steps} steps.",
            "warning",
        )


def _mean_factor(scheduler: SchedulerConfig, steps: int) -> float:
    """Of the schedule over a run of so many steps, from a hundred of them."""
    return sum(learning_rate_factor(steps * i // 100, scheduler, steps) for i in range(100)) / 100

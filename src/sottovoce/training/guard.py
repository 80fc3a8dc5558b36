"""The guard: looks at every step's losses and gradients before the weights move.

A step with a non-finite loss or gradient, or in which every loss is exactly 0, never reaches the weights or the
optimiser's moments: all gradients are dropped, the optimiser then finds nothing to do, and the step counts as skipped.
Too many in a row end the run. `clip_grad_norm_` alone is no protection: a NaN norm turns every gradient into NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from sottovoce.core.errors import TrainingAborted

Cause = Literal["nonfinite_loss", "zero_loss", "nonfinite_gradient"]


@dataclass(frozen=True)
class Verdict:
    """What the guard decided about one step."""

    gradient_norm: float
    """L2 norm over all gradients before clipping; NaN or infinite in a bad step."""
    clipped: bool = False
    cause: Cause | None = None
    """Why the step was skipped; None for a step that may be taken."""
    evidence: str = ""
    """The utterances whose loss, or the parameters whose gradient, was not finite."""

    @property
    def skipped(self) -> bool:
        """True when the gradients were dropped."""
        return self.cause is not None


@dataclass
class GradientGuard:
    """Guards one optimiser in any PyTorch loop.

    Call `inspect` after `backward` (and after un-scaling) and before `optimizer.step()`; always call the latter.

    >>> import torch
    >>> weight = nn.Parameter(torch.ones(2)); optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> guard = GradientGuard(max_norm=1.0)
    >>> (weight * torch.tensor([1.0, float("nan")])).sum().backward()
    >>> guard.inspect({"w": weight}, {}).cause
    'nonfinite_gradient'
    >>> optimizer.step(); weight.tolist()
    [1.0, 1.0]
    """

    max_norm: float = 0.0
    """Gradients of a larger global norm are scaled down to it; 0 switches clipping off."""
    max_bad_steps: int = 10
    """This many skipped steps in a row raise `TrainingAborted`."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Skipped steps of the run by cause."""
    in_a_row: int = 0
    last_skip: Verdict | None = None
    """The most recent skipped step."""

    def inspect(
        self,
        parameters: Mapping[str, nn.Parameter],
        losses: Mapping[str, float],
        bad_elsewhere: bool = False,
        zero_elsewhere: bool = True,
    ) -> Verdict:
        """Clip the gradients, or drop them all if anything is not finite.

        Args:
            parameters: every parameter of the optimiser, by name.
            losses: each utterance's loss in this step (this process's part), by trial id.
            bad_elsewhere: another process saw a non-finite loss. Gradients are already summed over processes, so
                their norm is the same everywhere.
            zero_elsewhere: no other process saw a loss above 0. All processes must decide alike, so that zeros here
                alone are no reason.

        Raises:
            TrainingAborted: `max_bad_steps` steps in a row were skipped.
        """
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        norm_tensor = nn.utils.get_total_norm(gradients)
        norm = float(norm_tensor)
        bad_utterances = [f"{name} ({value})" for name, value in losses.items() if not math.isfinite(value)]
        if bad_utterances or bad_elsewhere:
            return self._skip(parameters, norm, "nonfinite_loss", bad_utterances, bad_elsewhere)
        if losses and zero_elsewhere and not any(losses.values()):
            # A probability of exactly 1 is no achievement but a loss that was never computed, or replaced by a number.
            return self._skip(parameters, norm, "zero_loss", [f"{len(losses)} losses, all 0"], bad_elsewhere=False)
        if not math.isfinite(norm):
            guilty = [
                name for name, p in parameters.items() if p.grad is not None and not bool(p.grad.isfinite().all())
            ]
            return self._skip(parameters, norm, "nonfinite_gradient", guilty, bad_elsewhere=False)
        self.in_a_row = 0
        clipped = bool(self.max_norm) and norm > self.max_norm
        if clipped:
            nn.utils.clip_grads_with_norm_(
                [p for p in parameters.values() if p.grad is not None], self.max_norm, norm_tensor
            )
        return Verdict(norm, clipped)

    def _skip(
        self,
        parameters: Mapping[str, nn.Parameter],
        norm: float,
        cause: Cause,
        guilty: list[str],
        bad_elsewhere: bool,
    ) -> Verdict:
        shown = ", ".join(guilty[:3]) + (f" and {len(guilty) - 3} more" if len(guilty) > 3 else "")
        evidence = shown or (
            "in another process" if bad_elsewhere else f"the norm overflows; largest: {_largest(parameters)}"
        )
        for parameter in parameters.values():
            parameter.grad = None
        self.skipped[cause] += 1
        self.in_a_row += 1
        self.last_skip = Verdict(norm, False, cause, evidence)
        if self.in_a_row >= self.max_bad_steps:
            raise TrainingAborted(
                f"{cause} in {self.in_a_row} steps in a row (last: {evidence}); the weights are those of the last good "
                "step. Look for targets longer than their frames (sottovoce check DATA), then lower "
                "training.optimizer.lr"
            )
        return self.last_skip


def _largest(parameters: Mapping[str, nn.Parameter]) -> str:
    sizes = {name: float(p.grad.abs().max()) for name, p in parameters.items() if p.grad is not None}
    return max(sizes, key=lambda name: sizes[name])

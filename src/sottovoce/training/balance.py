"""Equal gradients from CTC and the transducer (`training.loss_scaling=gradient_norm`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from sottovoce.training.branches import CTC, TRANSDUCER

BALANCED: Final = (CTC.name, TRANSDUCER.name)
MEASURE_EVERY_STEPS: Final = 10
"""How often the gradients of the losses are measured against each other."""


@dataclass
class GradientBalance:
    """Running sizes of the gradients that the CTC and the transducer loss send into the encoder.

    The factor stays the same throughout a step: what a step measures, over all its micro-batches and processes, counts
    from the next step on, and only if the guard let the step pass.
    """

    decay: float = 0.9
    norms: dict[str, float] = field(default_factory=dict)
    """Saved in checkpoints."""
    squares: dict[str, float] = field(default_factory=dict)
    """Measured in the step in progress: sums of squares over its micro-batches."""

    def balanced(
        self,
        shares: Mapping[str, torch.Tensor],
        frames_BSE: torch.Tensor,
        step: int,
        summed: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """The losses with the transducer's scaled so that it sends as large a gradient into the encoder as CTC does.

        Measured now and then; `summed` adds up over the processes.
        """
        if not all(name in shares for name in BALANCED):
            return dict(shares)
        if step % MEASURE_EVERY_STEPS == 0 or not self.norms:
            for name in BALANCED:
                (gradient,) = torch.autograd.grad(shares[name], frames_BSE, retain_graph=True)
                self.measure(name, float(summed(gradient.float().square().sum().detach())))
        return {**shares, TRANSDUCER.name: shares[TRANSDUCER.name] * self.transducer_factor}

    def measure(self, name: str, squares: float) -> None:
        """Add one micro-batch's sum of squares."""
        self.squares[name] = self.squares.get(name, 0.0) + squares

    def settle(self, step_is_good: bool) -> None:
        """At the end of a step: take its measurements into the running means, or forget them."""
        if step_is_good:
            for name, squares in self.squares.items():
                norm, before = math.sqrt(squares), self.norms.get(name)
                self.norms[name] = norm if before is None else self.decay * before + (1 - self.decay) * norm
        self.squares = {}

    @property
    def transducer_factor(self) -> float:
        """What gives the transducer's loss a gradient as large as CTC's; 1 until both have been measured."""
        ctc, transducer = (self.norms.get(name, 0.0) for name in BALANCED)
        return ctc / transducer if ctc and transducer else 1.0

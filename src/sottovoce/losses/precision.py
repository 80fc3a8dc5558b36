"""Which number formats a lattice loss takes."""

from __future__ import annotations

import torch


def refuse_half_precision(logits: torch.Tensor) -> None:
    """Lattice losses take float32, float64 and bfloat16.

    Raises:
        ValueError: the logits are float16: whatever exceeded 65,504 is infinite by now, and 1e-8 is 0.
    """
    if logits.dtype == torch.float16:
        raise ValueError(
            "the logits are float16, which overflows at 65,504 before a loss can see it; make them in float32 or "
            "bfloat16 (training.precision=bfloat16)"
        )

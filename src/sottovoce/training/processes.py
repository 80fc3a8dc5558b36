"""What processes that train together tell each other."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import torch


def true_anywhere(trainer: lightning.Trainer | None, here: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of the flags `here` are true in any process; every process has to ask."""
    if trainer is None or trainer.world_size == 1:
        return list(here)
    counts = trainer.strategy.reduce(torch.tensor(here, device=device).float(), reduce_op="sum")
    assert isinstance(counts, torch.Tensor)
    return [count > 0 for count in counts.tolist()]

"""The processes of a Lightning trainer, as a step sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import lightning
import torch

T = TypeVar("T")


@dataclass(frozen=True)
class TrainerProcesses:
    """The processes of a Lightning trainer."""

    trainer: lightning.Trainer

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.trainer.global_rank

    @property
    def count(self) -> int:
        """How many train together."""
        return self.trainer.world_size

    def summed(self, here: torch.Tensor) -> torch.Tensor:
        """The sum over all of them."""
        if self.count == 1:
            return here
        return cast(torch.Tensor, self.trainer.strategy.reduce(here.clone(), reduce_op="sum"))  # reduces in place

    def broadcast(self, here: T) -> T:
        """The main process's value."""
        return here if self.count == 1 else self.trainer.strategy.broadcast(here)

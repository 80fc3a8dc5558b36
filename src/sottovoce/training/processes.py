"""What processes that train together tell each other; a step computed alone needs no framework for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Processes(Protocol):
    """The processes of a run, seen from one of them; every process has to make the same calls."""

    @property
    def rank(self) -> int:
        """This process's number; the main one is 0."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def summed(self, here: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all of them."""
        ...

    def broadcast(self, here: T) -> T:
        """The main process's value, in every process."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """One process by itself: of a run that has no others, or as one of several whose steps are computed again."""

    rank: int = 0
    count: int = 1

    def summed(self, here: torch.Tensor) -> torch.Tensor:
        """This process's share alone."""
        return here

    def broadcast(self, here: T) -> T:
        """The value as it is."""
        return here


def true_anywhere(processes: Processes, here: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of the flags `here` are true in any process."""
    if processes.count == 1:
        return list(here)
    return [count > 0 for count in processes.summed(torch.tensor(here, device=device).float()).tolist()]


def pair_of_main(processes: Processes, here: tuple[float, float], device: torch.device) -> tuple[float, float]:
    """The main process's two numbers, in every process."""
    if processes.count == 1:
        return here
    given = here if processes.rank == 0 else (0.0, 0.0)
    first, second = processes.summed(torch.tensor(given, device=device, dtype=torch.float64)).tolist()
    return first, second

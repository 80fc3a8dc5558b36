"""What every benchmark prints: medians, and how much each contestant costs compared with ours."""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One contestant on one shape."""

    name: str
    shape: str
    seconds: Sequence[float]
    """One measurement a round."""
    ours: Sequence[float]
    """Ours in the same rounds."""
    peak_mib: float | None = None
    """Memory it needs, where it was measured in a process of its own."""

    @property
    def ratio(self) -> float:
        """Median over the rounds of its time divided by ours: how many times slower than ours it is."""
        return statistics.median(a / b for a, b in zip(self.seconds, self.ours, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """The keys that `bench --json` promises."""
        return {
            "name": self.name,
            "shape": self.shape,
            "median_ms": 1000 * statistics.median(self.seconds),
            "min_ms": 1000 * min(self.seconds),
            "ratio_to_ours": self.ratio,
            "peak_mib": self._peak_mib(),
            "rounds": len(self.seconds),
        }

    def _peak_mib(self) -> float:
        """Its own, or else the whole process's until now."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if self.peak_mib is None else self.peak_mib

    def __str__(self) -> str:
        median, least = 1000 * statistics.median(self.seconds), 1000 * min(self.seconds)
        times = f"{median:>10.1f} ms{least:>10.1f} ms{self.ratio:>8.2f}"
        return f"{self.name:<44}{self.shape:<44}{times}{self._peak_mib():>10.1f}"


HEADER = f"{'':<44}{'':<44}{'median':>13}{'min':>13}{'÷ ours':>8}{'peak MiB':>10}"


def conditions() -> str:
    """What a reader must know to judge the figures."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, load {load}"

"""What looks on while a run trains. `diagnosis` provides one; the loop only knows this page of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sottovoce.core.findings import Finding
from sottovoce.training.guard import Verdict
from sottovoce.training.step import StepComputer, StepRecord


@dataclass(frozen=True)
class StepView:
    """One optimiser step, just done or just refused."""

    step: int
    """Steps done, this one included."""
    verdict: Verdict
    record: StepRecord
    """What the step was computed from and what it gave, in this process; of a run that ends before its first step one
    without any."""
    computer: StepComputer
    optimizer: torch.optim.Optimizer
    stage: str
    """Name of the stage that the step belonged to."""


class Watch(Protocol):
    """Looks at every step and every validation of a run; what it returns is recorded and printed.

    Called in every process; only the main one's findings are recorded.
    """

    key: str
    """Its name in checkpoints: what it remembers is saved and found again under it."""

    def begin(self, run_dir: Path, computer: StepComputer, optimizer: torch.optim.Optimizer) -> Iterable[Finding]:
        """Before the first step of this process, once the optimiser exists and `restore` has been called."""
        ...

    def before_update(self, computer: StepComputer, verdict: Verdict) -> None:
        """The guard has looked at the gradients; the weights have not moved yet."""
        ...

    def after_step(self, view: StepView) -> Iterable[Finding]:
        """After every step, skipped ones included."""
        ...

    def validated(self, step: int, values: Mapping[str, float]) -> Iterable[Finding]:
        """After every validation; called in the main process alone."""
        ...

    def finished(self, step: int) -> Iterable[Finding]:
        """After the last step of the run."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON values; saved in checkpoints."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        ...


class NoWatch:
    """Nobody looks on."""

    key: str = "none"

    def begin(self, run_dir: Path, computer: StepComputer, optimizer: torch.optim.Optimizer) -> Iterable[Finding]:
        """Nothing to say."""
        return ()

    def before_update(self, computer: StepComputer, verdict: Verdict) -> None:
        """Nothing to do."""

    def after_step(self, view: StepView) -> Iterable[Finding]:
        """Nothing to say."""
        return ()

    def validated(self, step: int, values: Mapping[str, float]) -> Iterable[Finding]:
        """Nothing to say."""
        return ()

    def finished(self, step: int) -> Iterable[Finding]:
        """Nothing to say."""
        return ()

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to remember."""

"""What the verbs that take long say while they work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.core.findings import Finding
from sottovoce.evaluation.scoring import Evaluation

Progress = Callable[[int, int], None]
"""Called with what is done and how much there is."""


def ignore(_: Any) -> None:
    """What nobody listens to."""


def no_progress(_: str) -> AbstractContextManager[Progress | None]:
    """No bar."""
    return nullcontext()


@dataclass(frozen=True)
class Listener:
    """Called while `train` and `resume` work, by the main process alone; by default nobody listens."""

    progress: Callable[[str], AbstractContextManager[Progress | None]] = no_progress
    """Given what begins (`checking trials`), a context that gives what to call with (done, total), or None."""
    evaluated: Callable[[Evaluation], None] = ignore
    """A split of the finished run."""
    found: Callable[[Finding], None] = ignore
    """What the diagnosis of the run says once it has ended, or preflight where it keeps the run from starting."""
    found_again: Callable[[Finding], None] = ignore
    """What preflight finds on a resumed run that its records hold already."""
    reported: Callable[[Path], None] = ignore
    """The run's report has been written."""

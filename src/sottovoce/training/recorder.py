"""What a run leaves behind while it goes: metrics, events, TensorBoard curves and a line for the person watching.

Only the main process records.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from sottovoce.core.records import JsonLines
from sottovoce.core.splits import Split
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.names import Metric, unprefixed
from sottovoce.training.tracking import Tracker

QUIET_SECONDS = 15.0
"""Where there is no terminal, a progress line is printed at least this often."""


def source_names(values: dict[str, float]) -> dict[str, float]:
    """The same values under the names that public trainers use, so that existing dashboards keep working.

    >>> source_names({"val/per": 0.25, "train/loss": 3.0})
    {'val/phoneme_accuracy': 0.75}
    """
    renamed = {Metric.STEP_SECONDS: "train/batch_time", "learning_rate/other": "learning_rate"}
    found = {renamed[name]: value for name, value in values.items() if name in renamed}
    if Metric.VAL_PER in values:
        found["val/phoneme_accuracy"] = max(0.0, 1.0 - values[Metric.VAL_PER])
    return found


@dataclass
class WindowMeans:
    """Sums of the training metrics since the last logged line; saved in checkpoints, so that a resumed run agrees."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Steps that had a value of this name: a branch may have been switched on in between."""

    def add(self, values: dict[str, float]) -> None:
        """Add one step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, forgetting everything."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


BEFORE_ANY: Final = -1


class Recorder(Protocol):
    """Takes down what happens in a run."""

    def metrics(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Values of one step."""
        ...

    def event(self, step: int, event: str, **details: Any) -> None:
        """Something happened."""
        ...

    def show(self, step: int, values: dict[str, float]) -> None:
        """How far the run is."""
        ...

    def say(self, line: str) -> None:
        """A line for the person who watches."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class RunRecorder:
    """`metrics.jsonl`, `events.jsonl`, `tensorboard/` and the progress display of one run."""

    def __init__(
        self, run_dir: Path, total_steps: int, first_step: int, tracker: Tracker | None = None, quiet: bool = False
    ) -> None:
        """`first_step` > 0 continues: what an earlier process recorded beyond it is forgotten.

        `quiet` shows nothing.
        """
        self._tracker = tracker
        self._metrics = JsonLines(RunDirectory(run_dir).metrics)
        self._events = JsonLines(RunDirectory(run_dir).events)
        kept = first_step or BEFORE_ANY  # killed before its first checkpoint, a run begins its records anew
        self._metrics.truncate_after(kept)
        self._events.truncate_after(kept)
        self._board = SummaryWriter(
            str(RunDirectory(run_dir).tensorboard), purge_step=first_step + 1 if first_step else None
        )
        self._display = None if quiet else _Display(total_steps, first_step)

    def metrics(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Record values of one step."""
        for name, value in values.items():
            self._metrics.append({"step": step, "split": split, "name": name, "value": value})
        under_all_names = values | source_names(values)
        for name, value in under_all_names.items():
            self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.metrics(step, under_all_names)
        self._metrics.flush()

    def event(self, step: int, event: str, **details: Any) -> None:
        """Record that something happened."""
        self._events.append({"step": step, "event": event, **details})
        self._events.flush()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Let the person watching know how far the run is."""
        if self._display is not None:
            self._display.update(step, values)

    def say(self, line: str) -> None:
        """Print one line above the progress display."""
        if self._display is not None:
            self._display.say(line)

    def close(self) -> None:
        """Write everything out and take the progress display down."""
        self._metrics.close()
        self._events.close()
        self._board.close()
        if self._tracker is not None:
            self._tracker.close()
        if self._display is not None:
            self._display.close()


class _Display:
    """A progress bar on a terminal, plain lines elsewhere; always on stderr."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._total, self._first = total_steps, first_step
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step)
            self._bar.start()

    def update(self, step: int, values: dict[str, float]) -> None:
        shown = "  ".join(f"{unprefixed(name)} {value:.3g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=shown)
        elif time.monotonic() - self._last_line > QUIET_SECONDS:
            elapsed = time.monotonic() - self._began
            left = elapsed / max(step - self._first, 1) * (self._total - step)
            self.say(f"step {step}/{self._total}  {shown}  ({left:.0f} s left)")

    def say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(line, soft_wrap=True, markup=False)
        sys.stderr.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

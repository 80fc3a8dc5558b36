"""What a run has left behind: of a finished run, one that still trains, or one that was killed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sottovoce.runs.names import Event, WatchKey


@dataclass(frozen=True)
class Series:
    """The recorded values of one metric; non-finite ones included."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(zip(self.steps, self.values, strict=True))

    def between(self, first: float, last: float) -> Series:
        """The part whose steps lie in (first, last]."""
        return self.where([first < step <= last for step in self.steps])

    def finite(self) -> Series:
        """The part whose values are finite."""
        return self.where([math.isfinite(value) for value in self.values])

    def where(self, kept: list[bool]) -> Series:
        """The part that is marked."""
        pairs = [pair for pair, keep in zip(self, kept, strict=True) if keep]
        return Series(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))

    def at(self, step: int) -> float | None:
        """The value recorded at `step`."""
        return dict(self).get(step)


@dataclass(frozen=True)
class SavedState:
    """A checkpoint without its tensors."""

    step: int
    state: dict[str, Any]
    optimizer_steps: dict[str, int]
    """Updates that the optimiser's moments of each parameter count; empty where no optimiser was saved."""

    @property
    def progress(self) -> dict[str, Any]:
        """The progress of the training as it was saved."""
        found = self.state.get("progress")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Evaluated:
    """One file of `evaluation/` with its hypotheses."""

    name: str
    """`SPLIT.DECODER`."""
    path: Path
    result: dict[str, Any]
    hypotheses: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class RunRecord:
    """A run directory in memory."""

    run_dir: Path
    values: dict[str, Any]
    """The configuration as plain values."""
    environment: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    """The lines of `metrics.jsonl` in the order they were written."""
    events: tuple[dict[str, Any], ...]
    checkpoints: dict[str, SavedState]
    """`last` and `best`, where they have been written."""
    capsules: tuple[Path, ...]
    evaluations: tuple[Evaluated, ...] = field(repr=False)
    damaged: tuple[str, ...] = ()
    """What could not be read, and why: a line for each file."""

    @cached_property
    def series(self) -> dict[str, Series]:
        """Each metric by its name; of a step that was written twice the later value."""
        found: dict[str, dict[int, float]] = {}
        for line in self.metrics:
            found.setdefault(line["name"], {})[int(line["step"])] = float(line["value"])
        ordered = {name: sorted(at.items()) for name, at in found.items()}
        return {name: Series(tuple(s for s, _ in pairs), tuple(v for _, v in pairs)) for name, pairs in ordered.items()}

    def metric(self, name: str) -> Series:
        """The finite values of `name`; empty where it was never recorded."""
        return self.series.get(name, Series()).finite()

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key, None where the run's configuration has no such key."""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def events_named(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names, in order."""
        return [event for event in self.events if event["event"] in names]

    @property
    def finished(self) -> bool:
        """Its last step has been done."""
        return bool(self.events_named(Event.RUN_FINISHED))

    @property
    def aborted(self) -> bool:
        """The guard gave up."""
        return bool(self.events_named(Event.RUN_ABORTED))

    @property
    def last_step(self) -> int:
        """The last step that left a trace; 0 before any."""
        steps = [series.steps[-1] for series in self.series.values() if series.steps]
        steps += [int(event["step"]) for event in self.events]
        steps += [saved.step for saved in self.checkpoints.values()]
        return max(steps, default=0)

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint that is kept as the best."""
        return self.checkpoints["best"].step if "best" in self.checkpoints else None

    @property
    def floors(self) -> dict[str, float]:
        """The input-blind floor of each split's trials in nats an utterance, as the monitor left it in a checkpoint."""
        for saved in self.checkpoints.values():
            found = saved.state.get("watch", {}).get(WatchKey.MONITOR, {}).get("floor", {})
            if found:
                return {split: float(floor) for split, floor in found.items() if floor is not None}
        return {}

    @property
    def stages(self) -> list[Begun]:
        """The stages that have begun, with where they ended."""
        begun = self.events_named(Event.STAGE_STARTED)
        if not begun:
            return []
        ends = [int(event["step"]) for event in begun[1:]] + [self.last_step]
        return [Begun(str(e["stage"]), int(e["step"]), end, e) for e, end in zip(begun, ends, strict=True)]


@dataclass(frozen=True)
class Begun:
    """A stage of the run, steps `first` + 1 to `last`."""

    name: str
    first: int
    last: int
    event: dict[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss."""
        return dict(self.event.get("loss_weights", {}))

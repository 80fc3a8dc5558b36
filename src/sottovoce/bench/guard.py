"""What the guard and the watch cost, of a run's step, beside forward, backward and AdamW alone.

Timed where they work, inside the steps of a run that take turns with bare ones: the difference of two whole steps would
drown a cost of one per cent in the noise of a busy machine. "Ours" is the bare step here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sottovoce.bench.rows import Row
from sottovoce.bench.train_step import SHAPES, WARM_UP_STEPS, Bare, Shape, TimedLoop, prepared_run
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.training.guard import Verdict
from sottovoce.training.preparation import Prepared
from sottovoce.training.run import build_trainer, fit
from sottovoce.training.watch import StepView

BARE = "bare forward + backward + AdamW"


def bench_guard(rounds: int = 20) -> list[Row]:
    """Per shape: the bare step, what guard and watch add to it, and the whole step of a run.

    The watch looks closer at one step in fifty, in a run as short as this at one in five: the mean has more of that
    than a real run.
    """
    return [row for shape in SHAPES for row in _compare(shape, rounds)]


def _compare(shape: Shape, rounds: int) -> list[Row]:
    prepared = prepared_run(shape, rounds)
    with tempfile.TemporaryDirectory() as folder:
        loop = _Loop(prepared, Path(folder))
        fit(prepared, loop, build_trainer(prepared.config))
    found = {BARE: loop.times["bare"], "guard and watch": loop.spent, "sottovoce, whole step": loop.times["ours"]}
    kept = {name: seconds[WARM_UP_STEPS:-1] for name, seconds in found.items()}
    kept["guard and watch, mean with sampled looks"] = [statistics.fmean(kept["guard and watch"])] * len(kept[BARE])
    return [Row(name, str(shape), seconds, kept[BARE]) for name, seconds in kept.items()]


class _Loop(TimedLoop):
    """A run that notes how long guard and watch take in each step."""

    def __init__(self, prepared: Prepared, run_dir: Path) -> None:
        watch = _Timed(prepared)
        super().__init__(prepared, run_dir, {"bare": Bare(prepared.config, prepared.trial_set)}, watch)
        self.spent = watch.spent
        self._guard = self.computer.guard.inspect
        self.computer.guard.inspect = self._timed  # type: ignore[method-assign]

    def _timed(self, *arguments: Any, **named: Any) -> Verdict:
        start = time.perf_counter()
        verdict = self._guard(*arguments, **named)
        self.spent.append(time.perf_counter() - start)
        return verdict


class _Timed(RunWatch):
    """Adds its own time, and that of the batch's copy for a capsule, to the guard's."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        self.spent: list[float] = []

    def after_step(self, view: StepView) -> Iterable[Finding]:
        start = time.perf_counter()
        for part in view.record.parts:
            part.batch.signal.clone()
        findings = super().after_step(view)
        self.spent[-1] += time.perf_counter() - start
        return findings

"""What looks on while a run trains: the preflight's findings, the monitor, and a capsule of every bad step."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sottovoce.core.errors import CheckpointError
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.capsules.capsule import capsules_of, write_capsule
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.monitor import RunMonitor
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.names import WatchKey
from sottovoce.training.guard import Verdict
from sottovoce.training.preparation import Prepared
from sottovoce.training.step import StepComputer
from sottovoce.training.watch import NoWatch, StepView, Watch


class CapsuleWriter(NoWatch):
    """Keeps bad steps, at most `training.guard.num_capsules`, of as many different causes as it can."""

    key: str = WatchKey.CAPSULES

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[int, str] = {}
        """Cause of each capsule by step; the same in every process."""
        self._run_dir = Path()
        self._bfloat16 = False

    def begin(self, run_dir: Path, computer: StepComputer, optimizer: torch.optim.Optimizer) -> Iterable[Finding]:
        """See which capsules a run that continues has."""
        self._run_dir = run_dir
        self._bfloat16 = computer.bfloat16
        self.kept = computer.processes.broadcast(capsules_of(run_dir) if computer.processes.rank == 0 else {})
        return ()

    def after_step(self, view: StepView) -> Iterable[Finding]:
        """Write the capsule of a bad step, if there is room for it."""
        if not view.verdict.skipped or not self._make_room(view):
            return ()
        try:
            write_capsule(self._run_dir, view, self._bfloat16)
        except CheckpointError as error:
            return (found("capsule_not_written", f"Step {view.step}: {error}.", "guard", step=view.step),)
        self.kept[view.step] = str(view.verdict.cause)
        return ()

    def _make_room(self, view: StepView) -> bool:
        """Room for one more: free, or that of the last capsule of a cause that several have."""
        if len(self.kept) < self.most or view.step in self.kept:
            return True
        counts = Counter(self.kept.values())
        spare = [step for step, cause in self.kept.items() if counts[cause] > 1]
        if not spare or view.verdict.cause in counts:
            return False
        del self.kept[max(spare)]
        if view.computer.processes.rank == 0:
            shutil.rmtree(RunDirectory(self._run_dir).capsules / str(max(spare)))
        return True


class RunWatch:
    """Several watches as one, and what the preflight has found as the run's first events."""

    key: str = "run"

    def __init__(
        self, prepared: Prepared, preflight_findings: Iterable[Finding] = (), others: Sequence[Watch] = ()
    ) -> None:
        self._preflight = tuple(preflight_findings)
        self.capsules = CapsuleWriter(prepared.config.training.guard.num_capsules)
        self.watches: tuple[Watch, ...] = (self.capsules, RunMonitor(prepared), *others)
        assert len({watch.key for watch in self.watches}) == len(self.watches), "two watches of one key"

    def begin(self, run_dir: Path, computer: StepComputer, optimizer: torch.optim.Optimizer) -> Iterable[Finding]:
        """The preflight's findings, then those of every watch."""
        return (*self._preflight, *(f for watch in self.watches for f in watch.begin(run_dir, computer, optimizer)))

    def before_update(self, computer: StepComputer, verdict: Verdict) -> None:
        """Hand on."""
        for watch in self.watches:
            watch.before_update(computer, verdict)

    def after_step(self, view: StepView) -> Iterable[Finding]:
        """Of every watch."""
        return [finding for watch in self.watches for finding in watch.after_step(view)]

    def validated(self, step: int, values: Mapping[str, float]) -> Iterable[Finding]:
        """Of every watch."""
        return [finding for watch in self.watches for finding in watch.validated(step, values)]

    def finished(self, step: int) -> Iterable[Finding]:
        """Of every watch."""
        return [finding for watch in self.watches for finding in watch.finished(step)]

    def state(self) -> dict[str, Any]:
        """Of every watch that remembers something, by its key."""
        return {watch.key: state for watch in self.watches if (state := watch.state())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave; a watch that was not there then starts afresh."""
        for watch in self.watches:
            if watch.key in state:
                watch.restore(state[watch.key])

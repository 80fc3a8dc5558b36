"""The run monitor: looks at every step and every validation of a run and says what goes wrong, as it happens.

It reads numbers that a step computes anyway and, every so many steps, a sample of the weights before and after the
update. It changes nothing and draws nothing. What it remembers is saved with the run's checkpoints, so that a resumed
run is judged like an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.symbols import symbol_table
from sottovoce.diagnosis.monitor.blank import Blanks
from sottovoce.diagnosis.monitor.events import Draws, Events
from sottovoce.diagnosis.monitor.frozen import Frozen
from sottovoce.diagnosis.monitor.input_blind_floor import MOST_TRIALS, input_blind_floor
from sottovoce.diagnosis.monitor.losses import Balance, Losses
from sottovoce.diagnosis.monitor.ownership import Moments, Ownership
from sottovoce.diagnosis.monitor.pace import Pace
from sottovoce.diagnosis.monitor.plan import Detector, ObservedStep, Plan, frames_of, recall, remembered
from sottovoce.diagnosis.monitor.reach import Reach
from sottovoce.diagnosis.monitor.sample import Sampler
from sottovoce.diagnosis.monitor.updates import Norms, Updates
from sottovoce.diagnosis.monitor.validation import Validations
from sottovoce.runs.names import WatchKey
from sottovoce.training.branches import CTC
from sottovoce.training.guard import Verdict
from sottovoce.training.preparation import Prepared
from sottovoce.training.step import StepComputer
from sottovoce.training.watch import StepView

FEWEST_VALIDATION_TRIALS: Final = 10
"""The floor's constants are fitted to the trials they are judged on, which flatters them by about half a nat a symbol:
2 % of a sentence's floor with ten trials, a tenth of it with two. Training losses are fitted too."""


class RunMonitor:
    """A `training.watch.Watch` that knows the causes of the catalogue which show while a run goes on."""

    key: str = WatchKey.MONITOR

    def __init__(self, prepared: Prepared) -> None:
        floor, val = input_blind_floor_of(prepared, prepared.train_indices), prepared.val_indices
        val_floor = input_blind_floor_of(prepared, val) if len(val) >= FEWEST_VALIDATION_TRIALS else None
        self.plan = Plan.of(prepared, floor, val_floor)
        self.ownership, self.moments, self.frozen = Ownership(self.plan), Moments(self.plan), Frozen(self.plan)
        self.events, self.draws, self.validations = Events(self.plan), Draws(self.plan), Validations(self.plan)
        self._sampler = Sampler(self.plan.sample_every)
        self._computer: StepComputer | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._run_dir = Path()
        self._updates = 0
        self._restored = False
        """The run goes on from a checkpoint."""
        self._detectors: dict[str, Detector] = {
            "ownership": self.ownership,
            "moments": self.moments,
            "frozen": self.frozen,
            "updates": Updates(self.plan),
            "reach": Reach(self.plan),
            "norms": Norms(self.plan),
            "blanks": Blanks(self.plan),
            "losses": Losses(self.plan),
            "balance": Balance(self.plan),
            "validations": self.validations,
            "pace": Pace(self.plan),
            "events": self.events,
            "draws": self.draws,
        }

    def begin(self, run_dir: Path, computer: StepComputer, optimizer: torch.optim.Optimizer) -> Iterator[Finding]:
        """Before the first step of this process: owners, and what a resumed run must have again."""
        self._run_dir, self._computer, self._optimizer = run_dir, computer, optimizer
        self._updates = computer.progress.updates
        self.frozen.watch_decoders(computer)
        step = computer.progress.step
        yield from self.ownership.at_begin(computer, optimizer, step)
        if self._restored:
            yield from self.moments.at_begin(computer, optimizer, step)

    def before_update(self, computer: StepComputer, verdict: Verdict) -> None:
        """Sample the weights that are about to move."""
        assert self._optimizer is not None
        self._sampler.before_update(computer, self._optimizer)

    def after_step(self, view: StepView) -> Iterator[Finding]:
        """Every detector looks at the step."""
        rates = _rates(view)
        sample = self._sampler.after_update(view.step, view.computer, view.optimizer, rates)
        now = ObservedStep(view, view.record.activity, self._updates, sample)
        self._optimizer, self._updates = view.optimizer, view.computer.progress.updates
        for detector in self._detectors.values():
            yield from detector.look(now)

    def validated(self, step: int, values: Mapping[str, float]) -> Iterator[Finding]:
        """After every validation."""
        assert self._computer is not None
        position = self._computer.progress.position
        self.events.validated(step, self.plan.curriculum.holds_back(position))
        yield from self.validations.validated(step, values)

    def finished(self, step: int) -> Iterator[Finding]:
        """After the last step."""
        assert self._computer is not None
        yield from self.validations.chosen(self._computer)
        yield from self.events.finished(step, self._run_dir, self._computer.processes.rank == 0)
        yield from self.draws.judge(step)

    def state(self) -> dict[str, Any]:
        """What all detectors remember, as JSON values; `floor` is for who explains the run afterwards."""
        floors = {"train": self.plan.floor, "val": self.plan.val_floor}
        return {"floor": floors} | {name: remembered(detector) for name, detector in self._detectors.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave; an empty state is that of a run that nobody watched."""
        if not state:
            return
        for name, detector in self._detectors.items():
            recall(detector, state[name])
        self._restored = True


def _rates(view: StepView) -> dict[str, float]:
    """The learning rate that each component's weights had in the step."""
    rates: dict[str, float] = {}
    for group in view.optimizer.param_groups:
        component = group.get("component")
        for name in [component] if component else view.record.activity.rates:
            rates[name] = max(rates.get(name, 0.0), group["lr"])
    return rates


def input_blind_floor_of(prepared: Prepared, indices: Sequence[int]) -> float | None:
    """F of these trials of the run, in nats an utterance; None where no stage has a CTC loss or no trial a target."""
    if not any(stage.config.weight_of(CTC.name) for stage in prepared.curriculum.stages):
        return None
    trials = [prepared.trial_set.trials[i] for i in indices]
    labelled = sorted((t for t in trials if t.labels), key=lambda trial: trial.num_steps)
    chosen = labelled[:: max(1, -(-len(labelled) // MOST_TRIALS))]
    if not chosen:
        return None
    table = symbol_table(prepared.config.data.symbols)
    targets, frames = [t.labels or () for t in chosen], [frames_of(prepared, t) for t in chosen]
    return input_blind_floor(targets, frames, len(table), table.blank)

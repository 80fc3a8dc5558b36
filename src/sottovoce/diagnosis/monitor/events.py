"""What was planned and has not happened, and what was drawn against what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.runs.directory import RunDirectory
from sottovoce.training.branches import TRANSDUCER

BATCHES: Final = 200
"""Steps after which the drawn trials are counted (row H10)."""
FEWEST_BATCHES: Final = 50
"""In a shorter run, at its end, if it had as many."""
IMBALANCE: Final = 5.0
"""Draws a trial of one session over those of another (row H4)."""
FEWEST_DRAWS: Final = 10
"""Draws that a session had to expect before it can be called neglected."""
OTHER_LENGTH: Final = 0.2
"""Share of trials whose signal is not as long as the index says."""


@dataclass
class Events:
    """Rows E3 and I4: stages, the transducer's release, validations, checkpoints."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    stage: str = ""
    first_step: int = 0
    """Of the stage."""
    last_step: int = 0
    num_validated: int = 0
    """Validations of the stage that its patience counts."""
    last_validation: int = 0
    transducer_steps: int = 0
    """Updates in stages that give the transducer a weight."""

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        if now.view.stage != self.stage:
            if self.stage:
                yield from self._stage_ended(now.step - 1)
            self.stage, self.first_step, self.num_validated = now.view.stage, now.step - 1, 0
        stage = self.plan.stage(self.stage).config
        warmup = self.plan.curriculum.rnnt_warmup_steps
        if stage.weight_of(TRANSDUCER.name):
            if self.transducer_steps > warmup and TRANSDUCER.name not in now.activity.weights:
                yield from self._once(
                    f"The transducer should have joined after {warmup} updates of its stages; after "
                    f"{self.transducer_steps} of them it is still switched off at step {now.step}.",
                    now.step,
                )
            self.transducer_steps += not now.skipped
        every = self.plan.config.training.validate_every_steps
        validates = self.plan.num_val_labels and now.view.computer.processes.rank == 0
        if validates and now.step - max(self.last_validation, self.first_step) > every:
            yield from self._once(
                f"Validation was planned every {every} steps; the last one up to step {now.step} was at "
                f"{self.last_validation}.",
                now.step,
            )
        self.last_step = now.step

    def validated(self, step: int, held_back: bool) -> None:
        """A validation took place; patience does not count those before the transducer joins."""
        self.last_validation = step
        self.num_validated += not held_back

    def finished(self, step: int, run_dir: Path, is_main: bool) -> Iterator[Finding]:
        """At the end of the run."""
        names = [stage.name for stage in self.plan.curriculum.stages]
        if self.stage:
            yield from self._stage_ended(step)
            if self.stage != names[-1]:
                yield from self._once(f"The run ended in the stage {self.stage}; {names[-1]} was planned.", step)
        every = self.plan.config.training.checkpoint_every_steps
        if is_main and step >= every and not RunDirectory(run_dir).last.exists():
            yield from self._once(f"A checkpoint was planned every {every} steps; there is none at step {step}.", step)

    def _stage_ended(self, step: int) -> Iterator[Finding]:
        stage = self.plan.stage(self.stage)
        done, patience = step - self.first_step, stage.config.patience
        if done >= stage.steps or (patience is not None and self.num_validated > patience):
            return
        if "stage_one_epoch" not in self.reported:
            self.reported.append("stage_one_epoch")
            why = "it has no patience to run out of" if patience is None else f"its patience is {patience}"
            yield monitored(
                "stage_one_epoch",
                f"Stage {self.stage} ended at step {step} after {done} of {stage.steps} steps and {self.num_validated} "
                f"validations that count; {why}, so at least {(patience or 0) + 1} of its own would be needed.",
                step,
            )

    def _once(self, evidence: str, step: int) -> Iterator[Finding]:
        if "per_epoch_counter" not in self.reported:
            self.reported.append("per_epoch_counter")
            yield monitored("per_epoch_counter", evidence, step)


@dataclass
class Draws:
    """Rows H4 and H10: the sessions and speakers that training has really drawn."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    draws: dict[str, int] = field(default_factory=dict)
    """By session."""
    speakers: list[str] = field(default_factory=list)
    steps: int = 0
    other_length: list[str] = field(default_factory=list)
    """Trials whose signal was not as long as the index says."""
    judged: bool = False

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        if self.judged:
            return
        for part in now.view.record.parts:
            lengths = part.batch.lengths_B.tolist()
            for trial_id, length in zip(part.batch.trial_ids, lengths, strict=True):
                trial = self.plan.trials.get(trial_id)
                if trial is None:
                    continue
                self.draws[trial.session] = self.draws.get(trial.session, 0) + 1
                if trial.speaker and trial.speaker not in self.speakers:
                    self.speakers.append(trial.speaker)
                if length != trial.num_steps and trial_id not in self.other_length:
                    self.other_length.append(trial_id)
        self.steps += 1
        if self.steps == BATCHES:
            yield from self.judge(now.step)

    def judge(self, step: int) -> Iterator[Finding]:
        """After enough batches, or at the end."""
        if self.judged or self.steps < FEWEST_BATCHES:
            return
        self.judged = True
        there = {trial.speaker for trial in self.plan.trials.values() if trial.speaker}
        if len(there) > 1 and len(self.speakers) == 1:
            yield monitored(
                "single_speaker_audio",
                f"All trials of the first {self.steps} batches are of {self.speakers[0]}; the training split has "
                f"{len(there)} speakers.",
                step,
            )
        if len(self.other_length) > OTHER_LENGTH * len(self.plan.trials):
            yield monitored(
                "single_speaker_audio",
                f"{len(self.other_length)} of {len(self.plan.trials)} trials came with a signal of another length than "
                f"their own (first {self.other_length[0]}): it is another recording's.",
                step,
                support=0.7,
            )
        yield from self._imbalance(step)

    def _imbalance(self, step: int) -> Iterator[Finding]:
        sizes: dict[str, int] = {}
        for trial in self.plan.trials.values():
            sizes[trial.session] = sizes.get(trial.session, 0) + 1
        total, drawn = len(self.plan.trials), sum(self.draws.values())
        expected = {session: drawn * size / total for session, size in sizes.items()}
        judged = [s for s in sizes if max(expected[s], self.draws.get(s, 0)) >= FEWEST_DRAWS]
        rates = {session: self.draws.get(session, 0) / sizes[session] for session in judged}
        if len(rates) < 2:
            return
        most, least = max(rates, key=lambda s: rates[s]), min(rates, key=lambda s: rates[s])
        if rates[most] > IMBALANCE * rates[least]:
            yield monitored(
                "session_imbalance",
                f"In {self.steps} batches a trial of {most} was drawn {rates[most]:.1f} times, one of {least} "
                f"{rates[least]:.1f} times ({sizes[most]} and {sizes[least]} trials).",
                step,
            )

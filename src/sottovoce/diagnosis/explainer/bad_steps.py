"""The steps that the guard refused, told by its events and, where there are any, by their capsules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from sottovoce.core.errors import CheckpointError
from sottovoce.diagnosis.capsules.capsule import BEFORE
from sottovoce.diagnosis.capsules.reading import read_processes
from sottovoce.diagnosis.capsules.signals import Signal, look_at_signals
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.runs.names import Event


@dataclass(frozen=True)
class BadStep:
    """A step whose loss, or whose gradient, was not finite."""

    step: int
    values: dict[str, str]
    """`inf` or `nan` by trial whose loss was not finite: of all that a capsule holds, else that the event names."""
    count: int
    """Trials whose loss was not finite."""
    batch: tuple[str, ...] = ()
    """The trials of the step, where a capsule tells."""
    signals: dict[str, Signal] = field(default_factory=dict)
    """Their signals."""
    damage: str = ""
    """Why the step's capsule could not be read."""

    @property
    def named_all(self) -> bool:
        """`values` holds every trial whose loss was not finite."""
        return len(self.values) == self.count

    @property
    def culprits(self) -> dict[str, Signal]:
        """The trials whose signal is enough for a NaN; where losses were not finite, of theirs."""
        odd = {trial: signal for trial, signal in self.signals.items() if not signal.finite or signal.out_of_scale}
        return {trial: signal for trial, signal in odd.items() if not self.values or trial in self.values}


def refused_steps(record: DiagnosedRun, code: str) -> list[BadStep]:
    """The steps that the guard refused for `code`: `nonfinite_loss` or `nonfinite_gradient`; in order."""
    return list(_refused_steps(record, code))


def _refused_steps(record: DiagnosedRun, code: str) -> Iterator[BadStep]:
    capsules = {folder.name: folder for folder in record.capsules if (folder / BEFORE).is_dir()}
    for event in record.events_named(Event.STEP_SKIPPED):
        if event["code"] != code:
            continue
        step = int(event["step"])
        values, count = {trial: value for _, trial, value in event["losses"]}, int(event["num_trials"])
        folder, damage = capsules.get(str(step)), ""
        if folder is not None and record.config is not None:
            try:
                processes = read_processes(folder)
            except CheckpointError as error:
                damage = str(error)
            else:
                bad = {t: nats for p in processes for (_, t), nats in p.losses.items() if not math.isfinite(nats)}
                values = {trial: "nan" if math.isnan(nats) else f"{nats:g}" for trial, nats in bad.items()}
                batches = [part.batch for process in processes for part in process.parts]
                yield BadStep(
                    step,
                    values,
                    len(values),
                    tuple(dict.fromkeys(trial for batch in batches for trial in batch.trial_ids)),
                    look_at_signals(FeaturePipeline(record.config.preprocessor), batches),
                )
                continue
        yield BadStep(step, values, count, damage=damage)

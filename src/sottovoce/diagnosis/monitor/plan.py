"""What a run intends, and one step of it, as the monitor's detectors see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol

from sottovoce.core.findings import Finding, Severity
from sottovoce.core.trial import Trial
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.monitor.hysteresis import Hysteresis
from sottovoce.diagnosis.monitor.sample import Sample
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import Prepared
from sottovoce.training.stages import Activity, Curriculum, Stage
from sottovoce.training.watch import StepView

LONGEST_WINDOW: Final = 200
"""Steps that slow conditions look back on, in a run of 10,000 steps or less."""
SHORTEST_WINDOW: Final = 20
WINDOW_SHARE: Final = 0.02
"""In a longer run, this share of it (policy of the catalogue of failures, 0.3)."""
SHORT_RUN: Final = 10
"""In a short one, a tenth of it."""
MOST_PATIENCE: Final = 500
"""Steps for which a slow start is nobody's fault (row D6)."""
LEAST_PATIENCE: Final = 100


@dataclass(frozen=True)
class Plan:
    """What the run intends."""

    config: RunConfig
    curriculum: Curriculum
    trials: Mapping[str, Trial]
    """The training trials by id."""
    num_val_labels: int
    """Labels of the validation split, which its PER counts in."""
    floor: float | None
    """The lowest CTC loss without looking at the input, in nats an utterance; None where nothing uses CTC."""
    frames_of: Mapping[str, int]
    """Encoder frames of each training trial, without augmentation."""
    val_floor: float | None = None
    """`floor` of the validation trials."""

    @property
    def total_steps(self) -> int:
        """Steps of a run in which no stage ends early."""
        return self.curriculum.total_steps

    @property
    def window(self) -> int:
        """Steps that slow conditions look back on."""
        shortened = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, self.total_steps // SHORT_RUN))
        return max(shortened, round(WINDOW_SHARE * self.total_steps))

    @property
    def patience(self) -> int:
        """Steps after the warm-up for which a slow start means nothing."""
        short = min(MOST_PATIENCE, max(LEAST_PATIENCE, self.total_steps // 3))
        return max(short, round(WINDOW_SHARE * self.total_steps))

    @property
    def collapse_steps(self) -> int:
        """Steps at the input-blind floor that are a collapse and no slow start (row D6); half of a short run."""
        short = min(MOST_PATIENCE, max(MOST_PATIENCE // 2, self.total_steps // 2))
        return max(short, round(WINDOW_SHARE * self.total_steps))

    @property
    def slow_exit_steps(self) -> int:
        """Steps of nothing but blanks below the floor, without a slope, that are a collapse: however short the run, for
        the end of a schedule has no slope either."""
        return max(MOST_PATIENCE, round(WINDOW_SHARE * self.total_steps))

    @property
    def sample_every(self) -> int:
        """Steps between two samples of the weights: about thirty of a short run."""
        return min(50, max(5, self.total_steps // 30))

    def stage(self, name: str) -> Stage:
        """The stage called `name`."""
        return next(stage for stage in self.curriculum.stages if stage.name == name)

    @classmethod
    def of(cls, prepared: Prepared, floor: float | None, val_floor: float | None = None) -> Plan:
        """The plan of a run that is about to begin."""
        trials = prepared.trial_set.trials
        training = [trials[i] for i in prepared.train_indices]
        return cls(
            config=prepared.config,
            curriculum=prepared.curriculum,
            trials={trial.trial_id: trial for trial in training},
            num_val_labels=sum(len(trials[i].labels or ()) for i in prepared.val_indices),
            floor=floor,
            frames_of={trial.trial_id: frames_of(prepared, trial) for trial in training},
            val_floor=val_floor,
        )


def frames_of(prepared: Prepared, trial: Trial) -> int:
    """Encoder frames of a trial as it was recorded."""
    return prepared.model.output_lengths(prepared.pipeline.shortest_length(trial.num_steps, False))


@dataclass(frozen=True)
class ObservedStep:
    """One step, and what is true of it."""

    view: StepView
    activity: Activity
    """What the step computed and moved."""
    updates: int
    """Steps before this one that moved the weights: what the schedule counts."""
    sample: Sample | None = None

    @property
    def step(self) -> int:
        """Steps done, this one included."""
        return self.view.step

    @property
    def skipped(self) -> bool:
        """The weights did not move."""
        return self.view.verdict.skipped

    @property
    def clip_factor(self) -> float:
        """What the gradients were multiplied by: 1 where they were not clipped."""
        verdict = self.view.verdict
        return verdict.limit / verdict.gradient_norm if verdict.clipped else 1.0


class Detector(Protocol):
    """Judges every step; its fields but `plan` are what it remembers, as JSON values and hystereses."""

    plan: Plan

    def look(self, now: ObservedStep) -> Iterable[Finding]:
        """After every step."""
        ...


def monitored(
    code: str,
    evidence: str,
    step: int,
    *,
    support: float = 1.0,
    severity: Severity | None = None,
    override: str = "",
    fix: str = "",
) -> Finding:
    """A finding of the monitor's."""
    return found(code, evidence, "monitor", step=step, support=support, severity=severity, override=override, fix=fix)


def remembered(detector: Any) -> dict[str, Any]:
    """What a detector knows, as JSON values."""
    return {
        entry.name: value.state() if isinstance(value := getattr(detector, entry.name), Hysteresis) else value
        for entry in fields(detector)
        if entry.name != "plan"
    }


def recall(detector: Any, state: Mapping[str, Any]) -> None:
    """Give a detector what `remembered` took from it.

    Raises:
        KeyError: the state lacks a field: it is another version's.
    """
    for entry in fields(detector):
        if entry.name == "plan":
            continue
        value = getattr(detector, entry.name)
        if isinstance(value, Hysteresis):
            value.restore(state[entry.name])
        else:
            setattr(detector, entry.name, state[entry.name])

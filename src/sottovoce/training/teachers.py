"""The runs that teach another one: trained models that hear the student's own batch and say what they make of it.

Every teacher hears exactly what the student hears, augmentation included (Beyer et al. 2022, arXiv 2106.05237: a good
teacher is consistent), so that frame s is the same moment on both sides. `diagnosis/preflight/teachers.py` makes sure
that features, frames and symbols agree, before the first step.
Legend: K teachers, B trials, S frames, V symbols.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.trial import Batch, Trial, TrialSet
from sottovoce.losses.distillation import AGGREGATIONS, frame_weights, teachers_opinion
from sottovoce.runs.names import Metric
from sottovoce.runs.taught_by import TaughtBy, read_taught_by
from sottovoce.runs.trained_decoder import TrainedDecoder, load
from sottovoce.runs.trained_on import TrainedOn, read_trained_on


@dataclass(frozen=True)
class DistillationConfig:
    """Learning from other runs: (1 - weight)·CTC with labels + weight·divergence from the teachers' frames."""

    teachers: tuple[str, ...] = ()
    """Directories of trained runs with a CTC head, same features, frames and symbols; none: plain training."""
    weight: float = 0.5
    """Share of the CTC loss's weight that goes to the divergence, in [0, 1]; 0: the teachers are not even loaded."""
    temperature: float = 2.0
    """τ that both sides are softened with; the divergence is multiplied by τ²."""
    aggregation: str = "logprob_mean"
    """How teachers become one: `logprob_mean` (geometric) or `prob_mean` (arithmetic)."""
    blank_threshold: float = 0.95
    """Frames in which the teachers give the blank at least this probability count less: they are most of all."""
    blank_frame_weight: float = 0.1
    """So much; 0 would leave nobody to teach the blank but the labels."""
    out_of_fold: bool = False
    """A teacher that was trained on a trial's speaker does not teach that trial."""

    @property
    def share(self) -> float:
        """Of the CTC loss's weight, the part that goes to the teachers; 0 without any."""
        return self.weight if self.teachers else 0.0

    def __post_init__(self) -> None:
        where = "training.distillation"
        if self.aggregation == "logit_mean":
            raise ConfigurationError(
                f"{where}.aggregation=logit_mean is logprob_mean: the normalisers cancel in the softmax; write that"
            )
        if self.aggregation not in AGGREGATIONS:
            raise ConfigurationError(f"{where}.aggregation={self.aggregation}: choose one of {', '.join(AGGREGATIONS)}")
        for name in ("weight", "blank_threshold", "blank_frame_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{where}.{name}={getattr(self, name)}: must lie in [0, 1]")
        if not 0 < self.temperature < math.inf:
            raise ConfigurationError(f"{where}.temperature={self.temperature}: must be positive and finite")


@dataclass(frozen=True)
class TeacherTargets:
    """What the teachers say of one batch."""

    log_q_BSV: torch.Tensor
    """Their common opinion at the temperature of the distillation."""
    weights_BS: torch.Tensor
    """How much each frame counts."""


@dataclass(frozen=True)
class Teacher:
    """A trained run, and whom it can teach."""

    run: TrainedDecoder
    trained_on: TrainedOn | None
    """What it was trained on; None where that is not known."""
    digest: str
    """Of its weights."""

    @property
    def name(self) -> str:
        """As the configuration calls it."""
        return str(self.run.run_dir)

    @property
    def per(self) -> float | None:
        """Of its CTC head, in its own validation; None where it had none."""
        return self.run.validation.get(Metric.VAL_CTC_PER, self.run.validation.get(Metric.VAL_PER))

    def logits(self, batch: Batch, session_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """CTC logits [B, S, V] of features and their valid frames [B]; `session_B` are the teacher's own numbers."""
        model = self.run.model.to(batch.signal.device)
        encoded = model.encode(batch.signal, batch.lengths_B, session_B)
        return model.ctc_logits(encoded), encoded.lengths_B


class Teachers:
    """The teachers of a run."""

    def __init__(
        self, teachers: Sequence[Teacher], config: DistillationConfig, trial_set: TrialSet, blank: int
    ) -> None:
        self.teachers = tuple(teachers)
        self.config = config
        self._blank = blank
        self._places = [_places(teacher.run, trial_set.sessions) for teacher in teachers]
        number = {session: i for i, session in enumerate(trial_set.sessions)}
        self._of_trial = {
            trial.trial_id: tuple(k for k in range(len(teachers)) if self._may_teach(k, trial, number[trial.session]))
            for trial in trial_set.trials
        }

    def targets(self, batch: Batch, positions: Sequence[int]) -> TeacherTargets:
        """What they say of a batch of features; `positions` are the trials' places in the step.

        Raises:
            ConfigurationError: two teachers disagree in frames or symbols.
        """
        logits_KBSV, frames_B, weights_KB = self.said_by_each(batch)
        config = self.config

        def opinion(temperature: float) -> torch.Tensor:
            return teachers_opinion(logits_KBSV, weights_KB, temperature, config.aggregation)

        weights_BS = frame_weights(
            opinion(1.0), frames_B, self._blank, config.blank_threshold, config.blank_frame_weight
        )
        return TeacherTargets(opinion(config.temperature), weights_BS * weights_KB.sum(0).sign()[:, None])

    @torch.no_grad()
    def said_by_each(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each teacher's logits [K, B, S, V], the valid frames [B], and each teacher's weight in each trial [K, B].

        Raises:
            ConfigurationError: two teachers disagree in frames or symbols.
        """
        device, logits, frames = batch.signal.device, list[torch.Tensor](), []
        for teacher, places in zip(self.teachers, self._places, strict=True):
            session_B = torch.tensor(places, device=device)[batch.session_B].clamp(min=0)
            of_one_BSV, frames_B = teacher.logits(batch, session_B)
            if logits and of_one_BSV.shape != logits[0].shape:
                raise ConfigurationError(
                    f"{teacher.name} gives logits of {list(of_one_BSV.shape)}, {self.teachers[0].name} of "
                    f"{list(logits[0].shape)} (trials, frames, symbols): they cannot teach together"
                )
            logits.append(of_one_BSV.float())
            frames.append(frames_B)
        return torch.stack(logits), frames[0], self.weights(batch)

    def weights(self, batch: Batch) -> torch.Tensor:
        """Each teacher's weight in each trial, [K, B]: equal among those that may teach it; all 0 without any."""
        may = [[k in self.of_trial(trial) for trial in batch.trial_ids] for k in range(len(self.teachers))]
        may_KB = torch.tensor(may, dtype=torch.float32, device=batch.signal.device)
        return may_KB / may_KB.sum(0).clamp(min=1)

    def of_trial(self, trial_id: str) -> tuple[int, ...]:
        """The numbers of the teachers that may teach this trial."""
        return self._of_trial[trial_id]

    def _may_teach(self, k: int, trial: Trial, session: int) -> bool:
        trained_on = self.teachers[k].trained_on
        if self.config.out_of_fold and trained_on is not None and trial.speaker in trained_on.speakers:
            return False
        return self._places[k][session] >= 0

    @property
    def taught_by(self) -> tuple[TaughtBy, ...]:
        """What is kept of them with the run that they teach."""
        return tuple(TaughtBy(t.name, t.run.checkpoint_step, t.digest) for t in self.teachers)

    @property
    def trained_on(self) -> TrainedOn | None:
        """What any of them was trained on; None where that is not known of all."""
        together = TrainedOn(frozenset(), frozenset())
        for teacher in self.teachers:
            if teacher.trained_on is None:
                return None
            together |= teacher.trained_on
        return together


def _places(run: TrainedDecoder, sessions: Sequence[str]) -> list[int]:
    """The teacher's number of each session; -1 where it has no adapter for it, 0 where it needs none."""
    if run.model.session_adapter is None:
        return [0] * len(sessions)
    own = {session: i for i, session in enumerate(run.sessions)}
    return [own.get(session, -1) for session in sessions]


def find_teachers(config: DistillationConfig, trial_set: TrialSet, blank: int) -> Teachers | None:
    """The teachers that a configuration names, with the weights of their best checkpoints; None where nobody teaches.

    Raises:
        CheckpointError: a directory is no run, or holds no checkpoint yet.
        ConfigurationError: one run is named twice; or the teachers must be kept from speakers, and one does not say
            what it was trained on.
    """
    if not config.share:
        return None
    teachers = []
    if len({Path(name).resolve() for name in config.teachers}) < len(config.teachers):
        raise ConfigurationError(f"training.distillation.teachers names a run twice: {', '.join(config.teachers)}")
    for name in config.teachers:
        run_dir = Path(name)
        run = load(run_dir)
        run.model.requires_grad_(False)
        teachers.append(Teacher(run, read_trained_on(run_dir), _digest(run)))
        if config.out_of_fold and teachers[-1].trained_on is None:
            raise ConfigurationError(
                f"training.distillation.out_of_fold: {run_dir} does not say what it was trained on (an older version "
                "made it, or it was imported); train it again, or leave out_of_fold out"
            )
    return Teachers(teachers, config, trial_set, blank)


def _digest(run: TrainedDecoder) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(run.model.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def refuse_changed_teachers(run_dir: Path, teachers: Teachers | None) -> None:
    """Raise where a run that continues would be taught by other weights than before.

    Raises:
        CheckpointError: the record is damaged.
        ConfigurationError: a teacher has changed.
    """
    before, now = read_taught_by(run_dir), teachers.teachers if teachers is not None else ()
    if len(before) != len(now):
        raise ConfigurationError(
            f"the teachers of {run_dir} were {len(before)} when it began and are {len(now)} now "
            "(training.distillation.teachers); name the same ones, or start a new run"
        )
    for teacher, known in zip(now, before, strict=True):
        if teacher.digest != known.weights_sha256:
            raise ConfigurationError(
                f"{teacher.name} has other weights now (step {teacher.run.checkpoint_step}) than when it began to "
                f"teach {run_dir}; put them back, or start a new run"
            )

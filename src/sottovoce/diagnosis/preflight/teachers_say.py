"""What teachers say of labelled trials, as they will teach them: of the right recording, well enough, and together.

Rows H5 and H8 of the catalogue. Legend: K teachers, B trials, S frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.trial import Trial
from sottovoce.data.collation import collate
from sottovoce.decoding.greedy import greedy_ctc
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.losses.distillation import teachers_opinion
from sottovoce.metrics import error_counts, percent
from sottovoce.training.teachers import Teacher, Teachers

NUM_TRIALS: Final = 12
"""Trials that the teachers are heard on: the shortest of validation with labels that somebody may teach."""
FEWEST_LABELS: Final = 30
"""With fewer labels in all of them an error rate says little."""
WORSE: Final = 0.3
"""A teacher is as good here as its own validation said, give or take this much PER."""
FITS: Final = 0.7
"""Error rate up to which a hypothesis may be of a trial; what is said at random is seldom below."""
FEWER_ERRORS: Final = 3
"""By so many errors a hypothesis must fit another trial better; a word of few labels is soon like another."""
WEAK: Final = 0.8
"""The commonest symbols alone have about this error rate."""
BLURRED: Final = 0.1
"""The common opinion may be worse than the mean teacher by this much PER."""


@dataclass(frozen=True)
class Said:
    """What one teacher says of the trials that it may teach."""

    teacher: Teacher
    trials: list[Trial]
    hypotheses: list[list[int]]

    @property
    def labels(self) -> list[tuple[int, ...]]:
        """What was meant."""
        return [trial.labels or () for trial in self.trials]

    @property
    def rate(self) -> float:
        """Errors over labels, of all trials together."""
        return _error_rate(self.hypotheses, self.labels)


def what_they_say(untrained: UntrainedRun, teachers: Teachers) -> Iterator[Finding]:
    """Each teacher against the labels, then all together against the mean teacher."""
    chosen = _places(untrained, teachers)
    trials = [untrained.prepared.trial_set.trials[i] for i in chosen]
    if sum(len(trial.labels or ()) for trial in trials) < FEWEST_LABELS:
        return
    blank = untrained.computer.blank
    batch = untrained.computer.pipeline.evaluate(collate(untrained.prepared.trial_set, chosen))
    logits_KBSV, frames_B, weights_KB = teachers.said_by_each(batch)
    all_said = []
    for teacher, logits_BSV, weights_B in zip(teachers.teachers, logits_KBSV, weights_KB, strict=True):
        rows = [row for row, weight in enumerate(weights_B.tolist()) if weight > 0]
        hypotheses = greedy_ctc(logits_BSV.log_softmax(-1), frames_B, blank)
        if rows:
            all_said.append(Said(teacher, [trials[row] for row in rows], [hypotheses[row] for row in rows]))
    for said in all_said:
        if (finding := _other_recordings(said) or _far_from_its_own(said) or _says_little(said)) is not None:
            yield finding
            return
    if len(all_said) > 1:
        log_q_BSV = teachers_opinion(logits_KBSV, weights_KB, 1.0, teachers.config.aggregation)
        yield from _blurred(untrained, log_q_BSV, frames_B, trials, all_said)


def _places(untrained: UntrainedRun, teachers: Teachers) -> list[int]:
    """Trials that are heard: labelled, and taught by somebody; of validation, or of training where it has none."""
    prepared = untrained.prepared
    trials = prepared.trial_set.trials
    for places in (prepared.val_indices, prepared.train_indices):
        taught = [i for i in places if trials[i].labels and teachers.of_trial(trials[i].trial_id)]
        if taught:
            return sorted(taught, key=lambda i: (trials[i].num_steps, i))[:NUM_TRIALS]
    return []


def _error_rate(said: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> float:
    errors = sum(sum(error_counts(want, got)[:3]) for want, got in zip(labels, said, strict=True))
    return errors / max(1, sum(map(len, labels)))


def _other_recordings(said: Said) -> Finding | None:
    """What it says of most trials fits the labels of another one, and clearly better than their own."""
    labels, count = said.labels, 0
    for i, symbols in enumerate(said.hypotheses):
        errors = [sum(error_counts(wanted, symbols)[:3]) for wanted in labels]
        best = min(range(len(labels)), key=lambda j: errors[j] / len(labels[j]))
        count += errors[best] < FITS * len(labels[best]) and errors[best] <= errors[i] - FEWER_ERRORS
    if 2 * count <= len(labels):
        return None
    return found(
        "teacher_audio_mismatch",
        f"What {said.teacher.name} says of {count} of {len(labels)} trials fits the labels of another trial better "
        "than their own: it does not hear the recordings that the student hears.",
        "preflight",
    )


def _far_from_its_own(said: Said) -> Finding | None:
    """Far worse than in its own validation; with speakers that are new to it nothing follows from that."""
    known, its = said.teacher.per, said.teacher.trained_on
    new = [t for t in said.trials if its is not None and t.speaker and t.speaker not in its.speakers]
    if known is None or new or said.rate <= known + WORSE:
        return None
    return found(
        "teacher_audio_mismatch",
        f"{said.teacher.name} has a PER of {percent(said.rate)} on {len(said.trials)} trials of this run, "
        f"{percent(known)} in its own validation: it does not hear or write the same, or these sessions are new to it.",
        "preflight",
        severity="warning",
        support=0.8,
    )


def _says_little(said: Said) -> Finding | None:
    if said.rate < WEAK:
        return None
    known = said.teacher.per
    own = "it was never validated" if known is None else f"in its own validation {percent(known)}"
    return found(
        "weak_teacher",
        f"{said.teacher.name} (step {said.teacher.run.checkpoint_step}) has a PER of {percent(said.rate)} on "
        f"{len(said.trials)} trials of this run; {own}.",
        "preflight",
    )


def _blurred(
    untrained: UntrainedRun,
    log_q_BSV: torch.Tensor,
    frames_B: torch.Tensor,
    trials: Sequence[Trial],
    all_said: Sequence[Said],
) -> Iterator[Finding]:
    """Row H8: their common opinion, decoded, is worse than the mean teacher."""
    config, blank = untrained.prepared.config.training.distillation, untrained.computer.blank
    labels = [trial.labels or () for trial in trials]
    together = _error_rate(greedy_ctc(log_q_BSV, frames_B, blank), labels)
    mean = sum(said.rate for said in all_said) / len(all_said)
    if together <= mean + BLURRED:
        return
    sure_BS = log_q_BSV[:, :, blank].exp() >= config.blank_threshold
    kept = 1 - sum(float(row[:frames].sum()) for row, frames in zip(sure_BS, frames_B.tolist(), strict=True)) / int(
        frames_B.sum()
    )
    yield found(
        "teacher_spikes_misaligned",
        f"On {len(trials)} trials the {len(all_said)} teachers have a PER of {percent(mean)} on average, their common "
        f"opinion ({config.aggregation}) {percent(together)}; the blank is not certain in {kept:.0%} of its frames.",
        "preflight",
    )

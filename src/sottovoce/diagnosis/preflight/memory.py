"""Preflight of memory: what the longest batch will take, measured on the excerpts and scaled up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.rehearsal import Rehearsal, rehearse
from sottovoce.diagnosis.preflight.subject import Subject
from sottovoce.training.preparation import Prepared


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run needs at its longest batch."""

    weights: int
    """Weights, gradients and Adam's two moments."""
    activations: int
    """What is kept for the backward pass, and the batch itself."""
    available: int
    """Of the GPU if the run will use one, else of the machine."""

    @property
    def total(self) -> int:
        """What has to fit."""
        return self.weights + self.activations

    def __str__(self) -> str:
        gib = [size / 2**30 for size in (self.total, self.weights, self.activations, self.available)]
        return (
            f"the longest batch takes about {gib[0]:.2f} GiB ({gib[1]:.2f} for weights, gradients and moments, "
            f"{gib[2]:.2f} for what is kept of the forward pass) of {gib[3]:.1f} GiB"
        )


def check_memory(subject: Subject, rehearsals: Sequence[Rehearsal]) -> Iterator[Finding]:
    """Whether the longest batch fits; the estimate is good to a factor of about 1.5."""
    estimate = estimate_memory(subject, rehearsals)
    if estimate.total > estimate.available:
        yield found("memory_short", f"By an estimate {estimate}.", "preflight", support=0.7)


def memory_of(prepared: Prepared) -> MemoryEstimate:
    """What the longest batch of a run will take, from one rehearsed step of each kind in its curriculum."""
    subject = Subject.of(prepared)
    with subject.untouched():
        return estimate_memory(subject, [rehearse(subject, moment) for moment in subject.moments])


def estimate_memory(subject: Subject, rehearsals: Sequence[Rehearsal]) -> MemoryEstimate:
    """Bytes of `training.batch_size` trials as long as the longest of training, in the largest stage.

    What autograd saved for the excerpts grows with the padded bins; what it saved for the transducer's lattice, with
    frames times labels.
    """
    prepared, batch = subject.prepared, subject.batch
    trials = [prepared.trial_set.trials[i] for i in prepared.train_indices]
    size = prepared.config.training.batch_size
    steps = max(trial.num_steps for trial in trials)
    labels = max(len(trial.labels or ()) for trial in trials)
    bins_factor = size * steps / (len(batch) * batch.signal.shape[1])
    cells_factor = bins_factor * (labels + 1) / (batch.labels_BU.shape[1] + 1)
    saved = [r.saved_bytes for r in rehearsals]
    without = [r.saved_bytes for r in rehearsals if "rnnt" not in r.moment.activity.weights]
    plain = max(without or saved)
    lattice = max(max(saved) - plain, 0)
    signals = size * steps * batch.signal[0, 0].numel() * batch.signal.element_size() * 2
    weights = sum(p.numel() * p.element_size() for p in subject.module.model.parameters()) * 4
    return MemoryEstimate(weights, int(plain * bins_factor + lattice * cells_factor) + signals, _available(subject))


def _available(subject: Subject) -> int:
    trainer = subject.prepared.config.trainer
    if torch.cuda.is_available() and trainer.accelerator != "cpu":
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // trainer.devices

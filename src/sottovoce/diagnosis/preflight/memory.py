"""Preflight of memory: what the longest batch will take, measured on excerpts of several sizes and drawn out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from sottovoce.core.findings import Finding, Severity
from sottovoce.core.trial import Batch, pad_labels
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.memory_limits import available_to_cpu, available_to_gpu, held
from sottovoce.diagnosis.preflight.rehearsal import Rehearsal, rehearse, saved_bytes
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun, shortest_frames
from sottovoce.training.branches import TRANSDUCER
from sottovoce.training.preparation import Prepared

LONGER: Final = 4
"""How many times longer the excerpts are made, to see what grows with them."""
TEMPORARIES: Final = 1.6
"""The peak over what autograd has saved: gradients on their way back, and what functions keep for themselves. Measured
as 1.8 with a GRU, 1.4 with state-space layers and a transducer."""
CERTAIN: Final = 2.0
"""Estimates at least this many times what is available end a run before its first step."""
CLOSE: Final = 0.8
"""Share of what is available from which on an estimate is worth a warning: it may be a quarter low."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run needs at its longest batch."""

    weights: int
    """Weights, gradients and Adam's two moments."""
    activations: int
    """What is kept for the backward pass, with its temporaries, and the batch itself."""
    process: int
    """What the process holds beside, and the guard's copy of weights and moments; 0 on a GPU, which holds neither."""
    available: int
    """Free on the GPU if the run will use one; else what the process may hold in all."""

    @property
    def total(self) -> int:
        """What has to fit."""
        return self.weights + self.activations + self.process

    def __str__(self) -> str:
        sizes = (self.total, self.weights, self.activations, self.process, self.available)
        gib = [size / 2**30 for size in sizes]
        return (
            f"the longest batch takes about {gib[0]:.2f} GiB ({gib[1]:.2f} for weights, gradients and moments, "
            f"{gib[2]:.2f} for forward and backward pass, {gib[3]:.2f} for the process) of {gib[4]:.1f} GiB"
        )


def check_memory(untrained: UntrainedRun, rehearsals: Sequence[Rehearsal]) -> Iterator[Finding]:
    """Whether the longest batch fits: an error where it is far from that, a warning where it is close."""
    estimate = estimate_memory(untrained, rehearsals)
    share = estimate.total / estimate.available
    if share > CLOSE:
        evidence, is_certain = f"By an estimate {estimate}.", share >= CERTAIN
        severity: Severity = "error" if is_certain else "warning"
        support = 0.95 if is_certain else 0.7
        yield found("memory_short", evidence, "preflight", severity=severity, support=support)


def memory_of(prepared: Prepared) -> MemoryEstimate:
    """What the longest batch of a run will take, from one rehearsed step of each kind in its curriculum."""
    untrained = UntrainedRun.of(prepared)
    with untrained.untouched():
        return estimate_memory(untrained, [rehearse(untrained, step_kind) for step_kind in untrained.step_kinds])


def estimate_memory(untrained: UntrainedRun, rehearsals: Sequence[Rehearsal]) -> MemoryEstimate:
    """Bytes of `training.batch_size` trials as long as the longest of training, in the stage that keeps the most.

    What autograd saves is made of four parts: what there is once (transposed weights), what there is for each trial
    (its session's layer), for each frame, and for each cell of a transducer's lattice; a transformer adds a fifth, for
    each pair of frames. Forward passes of batches that differ in one of these sizes tell the parts apart.

    Estimate over the measured peak of a process that takes three steps of the longest trial of 7.7 s, 64 channels, on a
    CPU: `demo` 0.97 (batches of 16) and 0.96 (128), three GRU layers of 256 units with the patches of `t15_gru` 1.00
    (16) and 0.95 (64), `mode_ssm_small` with its transducer 1.02 (8) and 1.07 (32). With 9 s, a transformer of four
    layers of 192 in place of the GRU of `demo`: 1.08 (16) and 0.98 (64).
    A run of `demo` in batches of 128, validation and all: 1.04.
    """
    prepared, batch = untrained.prepared, untrained.batch
    trials = [prepared.trial_set.trials[i] for i in prepared.train_indices]
    size, steps = prepared.config.training.batch_size, max(trial.num_steps for trial in trials)
    labels = max(len(trial.labels or ()) for trial in trials)
    largest = max(rehearsals, key=lambda rehearsal: rehearsal.saved_bytes)
    activations = _kept(untrained, largest, size, shortest_frames(prepared, steps), labels)
    signals = size * steps * batch.signal[0, 0].numel() * batch.signal.element_size() * 2
    weights = sum(p.numel() * p.element_size() for p in untrained.computer.model.parameters())
    if torch.cuda.is_available() and prepared.config.trainer.accelerator != "cpu":
        return MemoryEstimate(4 * weights + _of_teachers(untrained), activations + signals, 0, available_to_gpu())
    process = held() - weights + 3 * weights
    available = available_to_cpu(prepared.config.trainer.devices)
    return MemoryEstimate(4 * weights, activations + signals, process, available)


def _of_teachers(untrained: UntrainedRun) -> int:
    """Bytes of the weights of teachers; on a CPU the process holds them by now."""
    teachers = untrained.computer.teachers
    models = [teacher.run.model for teacher in teachers.teachers] if teachers is not None else []
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def _kept(untrained: UntrainedRun, largest: Rehearsal, size: int, frames: int, labels: int) -> int:
    """Bytes at the peak of a step over `size` trials of `frames` frames with `labels` labels each."""
    batch, step_kind = untrained.batch, largest.step_kind
    longer = _longer(batch, LONGER)
    frames_of = [shortest_frames(untrained.prepared, b.signal.shape[1]) for b in (batch, longer)]
    saved = largest.saved_bytes
    of_twice, of_longer = (saved_bytes(untrained, step_kind, other) for other in (_twice(batch), longer))
    per_frame = max(of_longer - saved, 0) / (len(batch) * (frames_of[1] - frames_of[0]))
    per_pair = 0.0
    if untrained.computer.model.encoder.compares_frames:  # growth is the steeper, the longer the trials
        half = _longer(batch, LONGER // 2)
        between = shortest_frames(untrained.prepared, half.signal.shape[1])
        gentler = (saved_bytes(untrained, step_kind, half) - saved) / (len(batch) * (between - frames_of[0]))
        per_pair = max((per_frame - gentler) / (frames_of[1] - between), 0.0)
        per_frame -= per_pair * sum(frames_of)
    per_trial = max((of_twice - saved) / len(batch) - per_frame * frames_of[0] - per_pair * frames_of[0] ** 2, 0.0)
    once = max(2 * saved - of_twice, 0)
    per_cell, cells = 0.0, batch.labels_BU.shape[1]
    if TRANSDUCER.name in step_kind.activity.weights and cells:
        more = saved_bytes(untrained, step_kind, _more_labels(longer, LONGER)) - of_longer
        per_cell = max(more, 0) / (len(batch) * frames_of[1] * (LONGER - 1) * cells)
        per_frame = max(per_frame - per_cell * (cells + 1), 0.0)
    of_a_frame = per_frame + per_cell * (labels + 1) + per_pair * frames
    return int(TEMPORARIES * (once + size * (per_trial + frames * of_a_frame)))


def _twice(batch: Batch) -> Batch:
    """Every trial two times."""
    both = batch.map_tensors(lambda values: torch.cat([values, values]))
    return replace(both, trial_ids=batch.trial_ids * 2)


def _longer(batch: Batch, times: int) -> Batch:
    """Trials whose signals come `times` times in a row."""
    return replace(batch, signal=torch.cat([batch.signal] * times, 1), lengths_B=batch.lengths_B * times)


def _more_labels(batch: Batch, times: int) -> Batch:
    """Labels that come `times` times in a row."""
    rows = zip(batch.labels_BU.tolist(), batch.label_lengths_B.tolist(), strict=True)
    labels_BU, label_lengths_B = pad_labels([labels[:length] * times for labels, length in rows])
    return replace(batch, labels_BU=labels_BU, label_lengths_B=label_lengths_B)

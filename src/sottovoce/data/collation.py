"""From trials to padded batches, and from steps to batches that a loader can prepare ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sottovoce.core.errors import SottovoceError
from sottovoce.core.trial import Batch, TrialSet, pad_labels, pad_signals
from sottovoce.data.sampling import BatchPlan


def collate(trial_set: TrialSet, indices: Sequence[int]) -> Batch:
    """The trials `indices` padded together; trials without labels get empty ones."""
    trials = [trial_set.trials[i] for i in indices]
    signals = [trial_set.signal(i) for i in indices]
    labels_BU, label_lengths_B = pad_labels([trial.labels or () for trial in trials])
    place = {session: i for i, session in enumerate(trial_set.sessions)}
    return Batch(
        signal=pad_signals(signals),
        lengths_B=torch.tensor([len(signal) for signal in signals]),
        labels_BU=labels_BU,
        label_lengths_B=label_lengths_B,
        session_B=torch.tensor([place[trial.session] for trial in trials]),
        trial_ids=tuple(trial.trial_id for trial in trials),
    )


@dataclass(frozen=True)
class StepPart:
    """The part of one optimiser step that one process sees in one forward pass."""

    step: int
    micro_batch: int
    positions: tuple[int, ...]
    """Place of each trial in the step's global batch."""
    batch: Batch

    def pin_memory(self) -> StepPart:
        """The same part in page-locked memory (called by PyTorch's loader)."""
        return StepPart(self.step, self.micro_batch, self.positions, self.batch.pin_memory())


@dataclass(frozen=True)
class StepParts(Dataset[StepPart]):
    """All parts of one process from `first_step` on, in order."""

    trial_set: TrialSet
    plan: BatchPlan
    first_step: int
    last_step: int
    micro_batches: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.micro_batches

    def __getitem__(self, index: int) -> StepPart:
        """A part; from a loader process an error too, for `StepLoader` to raise: PyTorch would keep its text alone."""
        try:
            return self._part(index)
        except SottovoceError as error:
            if get_worker_info() is None:
                raise
            return cast(StepPart, error)

    def _part(self, index: int) -> StepPart:
        if not 0 <= index < len(self):
            raise IndexError(index)
        ahead, micro_batch = divmod(index, self.micro_batches)
        step = self.first_step + ahead
        size = self.plan.batch_size // (self.micro_batches * self.world_size)
        first = (micro_batch * self.world_size + self.rank) * size
        positions = tuple(range(first, first + size))
        indices = self.plan.step(step)[first : first + size]
        return StepPart(step, micro_batch, positions, collate(self.trial_set, indices.tolist()))


class StepLoader(DataLoader[StepPart]):
    """Raises what a loader process could not read, with all its fields, when its turn comes."""

    def __iter__(self) -> Iterator[StepPart]:  # type: ignore[override]
        """The parts in order."""
        part: Any
        for part in super().__iter__():
            if isinstance(part, SottovoceError):
                raise part
            yield part


def step_loader(parts: StepParts, num_workers: int, pin_memory: bool) -> StepLoader:
    """Parts in order, prepared ahead by `num_workers` processes (0: when they are asked for)."""
    return StepLoader(
        parts,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        pin_memory=pin_memory,
    )

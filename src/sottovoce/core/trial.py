"""Trials and batches: lengths travel with every tensor.

Dimension legend: B trials in a batch, T bins of input, N samples of a waveform, C channels, U labels,
S encoder frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.splits import Split

BIN_MS = 20.0
"""Length of one bin of binned neural features."""


@dataclass(frozen=True)
class Trial:
    """Everything about one trial but its signal, which is read when it is needed."""

    trial_id: str
    """Unique in its data set and stable, e.g. `t15.2023.08.13/val/trial_0007`."""
    split: Split
    session: str
    """The unit that has an adapter of its own: a recording day, or a speaker."""
    num_steps: int
    """Valid bins of binned features, or samples of a waveform (at the front end's rate)."""
    labels: tuple[int, ...] | None
    """Symbol ids, already cut to their length; None where the split has no labels."""
    text: str | None
    """The sentence or word as written in the data."""
    file: Path
    key: str = ""
    """Where inside `file` (HDF5 group); empty for one trial per file."""
    block: int | None = None
    number: int | None = None
    """Index inside the block."""
    speaker: str = ""
    event: str = ""
    """Shared by several recordings of one spoken event; intervals and splits keep such trials together."""
    corpus: str = ""
    mode: Literal["silent", "vocalised", ""] = ""
    """Speaking mode, only where the data states it."""


class TrialSet(Protocol):
    """Trials of one or more splits of a data set, with lazy access to their signals.

    A trial set can be sent to another process: it opens files there on first use.
    """

    trials: tuple[Trial, ...]
    sessions: tuple[str, ...]
    """Every session of the data set in its fixed order; a trial's adapter index is its position here."""

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """Signal of trial `index`: [T, C] binned features or [N] waveform, exactly `num_steps` long.

        Raises:
            DataError: the file cannot be read or no longer matches its index.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """Trials padded together with zeros; the valid part is what the lengths say."""

    signal: torch.Tensor
    """float32: [B, T, C] features, or [B, N] waveforms before the front end."""
    lengths_B: torch.Tensor
    """int64: valid bins (or samples) of each trial."""
    labels_BU: torch.Tensor
    """int64, padded with 0."""
    label_lengths_B: torch.Tensor
    session_B: torch.Tensor
    """int64: index into the data set's sessions."""
    trial_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.trial_ids)

    @property
    def padding_fraction(self) -> float:
        """Share of the padded signal that no trial fills."""
        return 1.0 - float(self.lengths_B.sum()) / (len(self) * self.signal.shape[1])

    def map_tensors(self, apply: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same batch with `apply` on every tensor."""
        return replace(
            self,
            signal=apply(self.signal),
            lengths_B=apply(self.lengths_B),
            labels_BU=apply(self.labels_BU),
            label_lengths_B=apply(self.label_lengths_B),
            session_B=apply(self.session_B),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self.map_tensors(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by PyTorch's loader)."""
        return self.map_tensors(lambda x: x.pin_memory())


def valid_mask(lengths_B: torch.Tensor, size: int) -> torch.Tensor:
    """Boolean [B, size]: True where a position is inside its trial."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def pad_signals(signals: Sequence[npt.NDArray[np.float32]]) -> torch.Tensor:
    """Signals [T_i, …] stacked to float32 [B, max T, …], zeros beyond each end."""
    longest = max(len(s) for s in signals)
    padded = torch.zeros((len(signals), longest, *signals[0].shape[1:]))
    for row, signal in zip(padded, signals, strict=True):
        row[: len(signal)] = torch.from_numpy(signal)
    return padded


def pad_labels(labels: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as int64 [B, max U] padded with 0, and their lengths [B]."""
    lengths = torch.tensor([len(x) for x in labels])
    padded = torch.zeros((len(labels), int(lengths.max())), dtype=torch.int64)
    for row, values in zip(padded, labels, strict=True):
        row[: len(values)] = torch.tensor(values, dtype=torch.int64)
    return padded, lengths

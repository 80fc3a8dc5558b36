"""Patching: neighbouring bins stacked into one frame, which also lowers the frame rate.

Legend: B trials, T bins, C channels, S frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths, conv_length


@dataclass(frozen=True)
class PatchConfig:
    """Overlapping windows of bins."""

    size: int = 14
    """Bins in a patch (20 ms each)."""
    stride: int = 4
    """Bins from one patch to the next."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.stride <= self.size:
            raise ConfigurationError(
                f"model.patch: size must be at least 1 and stride between 1 and size (a larger stride skips bins); "
                f"got size={self.size}, stride={self.stride}"
            )

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Whole patches in `lengths` bins; 0 for a trial shorter than one patch."""
        return conv_length(lengths, self.size, self.stride)


def patches(signal_BTC: torch.Tensor, config: PatchConfig) -> torch.Tensor:
    """[B, S, size·C], each patch flattened time-major: column k·C + c is bin k, channel c (nejm-brain-to-text)."""
    windows_BSCK = signal_BTC.unfold(1, config.size, config.stride)
    return windows_BSCK.transpose(2, 3).flatten(2)


def patch_chunk(
    waiting_BTC: torch.Tensor, chunk_BTC: torch.Tensor, config: PatchConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bins that later patches need, and the patches [B, S, size·C] that `chunk_BTC` completes.

    `waiting_BTC` are the bins that the last call left, none before the first; at most `size - 1` wait.
    """
    bins_BTC = torch.cat([waiting_BTC, chunk_BTC], 1)
    num_frames = config.output_lengths(bins_BTC.shape[1])
    used = num_frames * config.stride
    if not num_frames:
        return bins_BTC, bins_BTC.new_zeros(len(bins_BTC), 0, config.size * bins_BTC.shape[2])
    return bins_BTC[:, used:].clone(), patches(bins_BTC, config)

"""Gaussian smoothing along time: the kernel, a batched view, and a streaming view that gives the same numbers.

Legend: B trials, T bins, C channels. The kernel is that of the official T15 code
(nejm-brain-to-text `data_augmentations.py`): a unit impulse smoothed by a Gaussian, taps of at most 0.01 cut, the rest
renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

IMPULSE_BINS = 100
SMALLEST_TAP = 0.01


def gaussian_taps(sigma_bins: float) -> tuple[float, ...]:
    """Symmetric, odd-length taps that sum to 1; σ = 2 gives nine.

    >>> [round(tap, 5) for tap in gaussian_taps(2.0)[:5]]
    [0.02763, 0.06628, 0.12383, 0.18017, 0.20416]
    """
    offsets = np.arange(IMPULSE_BINS) - IMPULSE_BINS // 2
    gaussian = np.exp(-0.5 * (offsets / sigma_bins) ** 2)
    gaussian /= gaussian.sum()
    kept = gaussian[gaussian > SMALLEST_TAP]
    return tuple(float(tap) for tap in kept / kept.sum())


def smooth(signal_BTC: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
    """Each channel convolved with `taps` ("same" length); beyond both ends there are zeros.

    The padding of a batch must be zero, so that a trial comes out the same alone and beside longer ones; its own
    padding afterwards holds the tail of the kernel and has to be zeroed again. Adding shifted copies is several
    times faster on a CPU than a depthwise convolution with the same taps.
    """
    half = len(taps) // 2
    size = signal_BTC.shape[1]
    padded = functional.pad(signal_BTC, (0, 0, half, half))
    smoothed = padded[:, half : half + size] * taps[half]
    for i in range(half):
        smoothed.add_(padded[:, i : i + size], alpha=taps[i])
        smoothed.add_(padded[:, 2 * half - i : 2 * half - i + size], alpha=taps[i])
    return smoothed


@dataclass(frozen=True)
class SmoothingState:
    """The last 2·half bins of input of one trial: [2·half, C], zeros before the start."""

    recent: torch.Tensor
    warming_up: int
    """Outputs still to be dropped because they lie before the first bin."""


def start_smoothing(num_channels: int, taps: tuple[float, ...], device: torch.device | str = "cpu") -> SmoothingState:
    """State before the first bin."""
    half = len(taps) // 2
    return SmoothingState(torch.zeros(2 * half, num_channels, device=device), half)


def smooth_chunk(
    state: SmoothingState, chunk_TC: torch.Tensor, taps: tuple[float, ...]
) -> tuple[SmoothingState, torch.Tensor]:
    """Smoothed bins that `chunk_TC` completes; output lags the input by half the kernel (σ = 2: 4 bins)."""
    half = len(taps) // 2
    window = torch.cat([state.recent, chunk_TC])
    smoothed = smooth(window[None], taps)[0, half : half + len(chunk_TC)]
    dropped = min(state.warming_up, len(smoothed))
    return SmoothingState(window[len(chunk_TC) :].clone(), state.warming_up - dropped), smoothed[dropped:]


def finish_smoothing(state: SmoothingState, taps: tuple[float, ...]) -> torch.Tensor:
    """The last bins, which saw zeros beyond the end of the trial."""
    half = len(taps) // 2
    _, smoothed = smooth_chunk(state, state.recent.new_zeros(half, state.recent.shape[1]), taps)
    return smoothed

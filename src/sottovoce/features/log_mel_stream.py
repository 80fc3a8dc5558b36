"""The log-mel spectrum of a waveform that arrives piece by piece; all pieces together equal `log_mel` of the whole.

Legend: N samples, T frames, C mel bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from sottovoce.features.config import LogMelConfig
from sottovoce.features.log_mel import analysis_window, log_mel_bands


@dataclass(frozen=True)
class LogMelState:
    """What the next frames need of the past; its size does not depend on how long the stream has run."""

    last_1: torch.Tensor
    """The last sample, for pre-emphasis: 0 before the first."""
    waiting_N: torch.Tensor
    """Pre-emphasised samples from the beginning of the next frame's window on; zeros before the first sample."""


def _reach(config: LogMelConfig) -> tuple[int, int]:
    """Samples of a frame's window before its centre, and from there on."""
    length = len(analysis_window(config))
    before = config.num_fft // 2 - (config.num_fft - length) // 2
    return before, length - before


def log_mel_latency_samples(config: LogMelConfig) -> int:
    """Samples after a frame's first that must have arrived before it comes out: its hop, or half a window if longer."""
    return max(config.hop_samples, _reach(config)[1])


def start_log_mel(config: LogMelConfig, device: torch.device | str = "cpu") -> LogMelState:
    """State before the first sample."""
    return LogMelState(torch.zeros(1, device=device), torch.zeros(_reach(config)[0], device=device))


def log_mel_chunk(
    state: LogMelState, chunk_N: torch.Tensor, config: LogMelConfig, num_bands: int
) -> tuple[LogMelState, torch.Tensor]:
    """Frames [T, C] that `chunk_N`, any number of samples at `config.sample_rate_hz`, completes."""
    joined = torch.cat([state.last_1, chunk_N])
    emphasised = chunk_N - config.pre_emphasis * joined[:-1]
    waiting_N = torch.cat([state.waiting_N, emphasised])
    before, after = _reach(config)
    num_frames = min(
        (len(waiting_N) - before) // config.hop_samples,  # as many as there are whole hops
        (len(waiting_N) - before - after) // config.hop_samples + 1,  # whose windows are full
    )
    frames_TC = _frames(waiting_N, max(num_frames, 0), config, num_bands)
    used = len(frames_TC) * config.hop_samples
    return LogMelState(joined[-1:].clone(), waiting_N[used:].clone()), frames_TC


def finish_log_mel(state: LogMelState, config: LogMelConfig, num_bands: int) -> torch.Tensor:
    """The last frames [T, C], which see zeros beyond the end."""
    before, after = _reach(config)
    num_frames = (len(state.waiting_N) - before) // config.hop_samples
    return _frames(functional.pad(state.waiting_N, (0, after)), num_frames, config, num_bands)


def _frames(waiting_N: torch.Tensor, num_frames: int, config: LogMelConfig, num_bands: int) -> torch.Tensor:
    """The first frames [T, C] whose windows begin every hop from the first sample on."""
    if not num_frames:
        return waiting_N.new_zeros(0, num_bands)
    window = analysis_window(config).to(waiting_N.device)
    windows_TN = waiting_N.unfold(0, len(window), config.hop_samples)[:num_frames] * window
    left = (config.num_fft - len(window)) // 2
    filled_TN = functional.pad(windows_TN, (left, config.num_fft - len(window) - left))
    return log_mel_bands(torch.fft.rfft(filled_TN)[None], config, num_bands)[0]

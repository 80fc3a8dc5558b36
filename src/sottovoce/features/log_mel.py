"""Log-mel spectrum of padded waveforms, frame by frame what NeMo's `features.py` computes.

Dimension legend: B trials in a batch, N samples, T frames, F bins of the Fourier transform, C mel bands.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import log_mel_length
from sottovoce.core.trial import valid_mask
from sottovoce.features.config import LogMelConfig

LOG_FLOOR: Final = 2.0**-24
WARP_KNEE: Final = 0.8
"""Share of `high_hz` up to which a formant factor scales the frequency axis."""

_HZ_PER_MEL: Final = 200 / 3
_LOG_FROM_HZ: Final = 1000.0
_LOG_STEP: Final = math.log(6.4) / 27


def hz_to_mel(hz: torch.Tensor) -> torch.Tensor:
    """Slaney's mel scale: 3 mel in 200 Hz up to 1000 Hz, logarithmic above (27 mel a factor of 6.4)."""
    bent = _LOG_FROM_HZ / _HZ_PER_MEL + (hz.clamp(min=_LOG_FROM_HZ) / _LOG_FROM_HZ).log() / _LOG_STEP
    return torch.where(hz < _LOG_FROM_HZ, hz / _HZ_PER_MEL, bent)


def mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    """Inverse of `hz_to_mel`."""
    knee = _LOG_FROM_HZ / _HZ_PER_MEL
    bent = _LOG_FROM_HZ * ((mel.clamp(min=knee) - knee) * _LOG_STEP).exp()
    return torch.where(mel < knee, mel * _HZ_PER_MEL, bent)


def mel_filterbank(config: LogMelConfig, num_bands: int) -> torch.Tensor:
    """Triangular mel filters with Slaney's area norm, float32 [F, C]; equal to `librosa.filters.mel`, transposed.

    Raises:
        ConfigurationError: the bands reach beyond half the sample rate, or one of them lies between two bins.
    """
    return _filterbank(config, num_bands).clone()


@lru_cache(maxsize=8)
def _filterbank(config: LogMelConfig, num_bands: int) -> torch.Tensor:
    bank = warped_filterbanks(config, num_bands, torch.ones(1))[0]
    empty = (bank.amax(dim=0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ConfigurationError(
            f"preprocessor.log_mel: mel band {empty[0]} of {num_bands} covers no bin of a {config.num_fft}-point "
            f"transform at {config.sample_rate_hz} Hz; take fewer channels or a larger num_fft"
        )
    return bank


def warped_filterbanks(config: LogMelConfig, num_bands: int, formant_B: torch.Tensor) -> torch.Tensor:
    """One mel filterbank for each formant factor, float32 [B, F, C].

    A factor of 1.1 makes a resonance at 1000 Hz appear where one at 1100 Hz would. Up to 0.8 `high_hz` the axis is
    scaled, from there to `high_hz` a straight line closes the gap, so that no band leaves the spectrum
    (vocal tract length perturbation, Jaitly and Hinton 2013).
    """
    limits = hz_to_mel(torch.tensor([config.low_hz, config.high_hz], dtype=torch.float64))
    mels = torch.linspace(float(limits[0]), float(limits[1]), num_bands + 2, dtype=torch.float64)
    edges_BE = _unwarp(mel_to_hz(mels), formant_B.detach().double().cpu(), config.high_hz)
    bins_F = torch.linspace(0, config.sample_rate_hz / 2, config.num_fft // 2 + 1, dtype=torch.float64)
    distance_BEF = edges_BE[:, :, None] - bins_F
    width_BE = edges_BE.diff(dim=1)
    rising = -distance_BEF[:, :-2] / width_BE[:, :-1, None]
    falling = distance_BEF[:, 2:] / width_BE[:, 1:, None]
    area_norm = 2 / (edges_BE[:, 2:] - edges_BE[:, :-2])
    bank_BCF = torch.minimum(rising, falling).clamp_(min=0) * area_norm[:, :, None]
    return bank_BCF.transpose(1, 2).to(formant_B.device, torch.float32)


def _unwarp(hz_E: torch.Tensor, factor_B: torch.Tensor, high_hz: float) -> torch.Tensor:
    """Where in the recorded spectrum [B, E] the frequencies `hz_E` of the warped one are found."""
    factor = factor_B[:, None]
    knee = WARP_KNEE * high_hz * factor.clamp(max=1)
    scaled = hz_E / factor
    slope = (high_hz - knee / factor) / (high_hz - knee)
    return torch.where(hz_E <= knee, scaled, high_hz - (high_hz - hz_E) * slope)


@lru_cache(maxsize=8)
def analysis_window(config: LogMelConfig) -> torch.Tensor:
    """The Hann window that every frame is multiplied by, at most `num_fft` samples; shared, not to be changed.

    Raises:
        ConfigurationError: it is longer than `num_fft`.
    """
    length = round(config.window_ms * config.sample_rate_hz / 1000)
    if length > config.num_fft:
        raise ConfigurationError(
            f"preprocessor.log_mel: a window of {config.window_ms:g} ms has {length} samples at "
            f"{config.sample_rate_hz} Hz, more than num_fft={config.num_fft}; raise num_fft"
        )
    return torch.hann_window(length, periodic=False)


def log_mel(
    signal_BN: torch.Tensor,
    lengths_B: torch.Tensor,
    config: LogMelConfig,
    num_bands: int,
    formant_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel frames [B, floor(N / hop), C] (natural logarithm of power) and the valid frames of each trial.

    Frames beyond a trial's end are 0, and a trial's frames do not depend on the padding.

    Args:
        signal_BN: float32 waveforms at `config.sample_rate_hz`; what lies beyond a trial's length is ignored.
        formant_B: factor for each trial, see `warped_filterbanks`.

    Raises:
        ConfigurationError: window, bands, sample rate and `num_fft` contradict each other.
    """
    hop = config.hop_samples
    signal_BN = signal_BN * valid_mask(lengths_B, signal_BN.shape[1])
    emphasised = signal_BN.clone()
    emphasised[:, 1:] -= config.pre_emphasis * signal_BN[:, :-1]
    emphasised *= valid_mask(lengths_B, signal_BN.shape[1])
    window = analysis_window(config).to(signal_BN.device)
    spectrum_BFT = torch.stft(
        emphasised,
        config.num_fft,
        hop,
        win_length=len(window),
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    num_frames = log_mel_length(signal_BN.shape[1], hop)
    features_BTC = log_mel_bands(spectrum_BFT[:, :, :num_frames].transpose(1, 2), config, num_bands, formant_B)
    frames_B = log_mel_length(lengths_B, hop)
    return features_BTC * valid_mask(frames_B, num_frames)[:, :, None], frames_B


def log_mel_bands(
    spectrum_BTF: torch.Tensor, config: LogMelConfig, num_bands: int, formant_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Complex spectra [B, T, F] to the logarithm of each band's power [B, T, C]."""
    power_BTF = torch.view_as_real(spectrum_BTF).square().sum(-1)
    plain_FC = _filterbank(config, num_bands)
    bank = plain_FC.to(spectrum_BTF.device) if formant_B is None else warped_filterbanks(config, num_bands, formant_B)
    with torch.autocast(spectrum_BTF.device.type, enabled=False):  # bfloat16 would blur the spectrum by 0.4 %
        return (power_BTF @ bank + LOG_FLOOR).log()

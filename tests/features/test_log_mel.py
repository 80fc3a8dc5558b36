"""The log-mel front end against librosa's numbers, a direct computation and its own unpadded result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import log_mel_length
from sottovoce.features.config import LogMelConfig
from sottovoce.features.log_mel import (
    LOG_FLOOR,
    hz_to_mel,
    log_mel,
    mel_filterbank,
    mel_to_hz,
    warped_filterbanks,
)

NEMO = LogMelConfig()
TELEPHONE = LogMelConfig(sample_rate_hz=8000, num_fft=256, high_hz=4000.0)


def _waveforms(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    signal = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        signal[row, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(row))
    return signal, torch.tensor(lengths)


def test_mel_scale_is_slaneys_and_invertible() -> None:
    hz = torch.tensor([0.0, 500.0, 1000.0, 6400.0], dtype=torch.float64)
    assert hz_to_mel(hz).tolist() == pytest.approx([0.0, 7.5, 15.0, 42.0], abs=1e-12)
    assert mel_to_hz(hz_to_mel(hz)).tolist() == pytest.approx(hz.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    ("config", "num_bands", "total", "values"),
    [
        # librosa 0.11.0: librosa.filters.mel(sr=…, n_fft=…, n_mels=…, fmin=0, fmax=…, norm="slaney")[band, bin]
        (
            NEMO,
            80,
            2.5582608,
            {
                (0, 1): 0.02253456,
                (0, 2): 0.0086377105,
                (20, 25): 0.026295703,
                (20, 26): 0.0048765698,
                (40, 55): 0.014444176,
                (40, 56): 0.0087614786,
                (79, 246): 0.0032521484,
                (79, 247): 0.0031553369,
            },
        ),
        (
            TELEPHONE,
            40,
            1.2792624,
            {
                (0, 2): 0.015861319,
                (0, 3): 0.0063023814,
                (10, 20): 0.016282784,
                (10, 21): 0.009137474,
                (20, 39): 0.011584537,
                (20, 40): 0.010085927,
                (39, 121): 0.0042927451,
                (39, 122): 0.003679496,
            },
        ),
    ],
)
def test_filterbank_equals_librosas(
    config: LogMelConfig, num_bands: int, total: float, values: dict[tuple[int, int], float]
) -> None:
    bank = mel_filterbank(config, num_bands)
    assert bank.shape == (config.num_fft // 2 + 1, num_bands)
    assert bank.dtype == torch.float32
    assert float(bank.double().sum()) == pytest.approx(total, rel=1e-6)
    for (band, fft_bin), value in values.items():
        assert float(bank[fft_bin, band]) == pytest.approx(value, abs=1e-8)


def test_every_step_of_one_frame_in_numpy() -> None:
    signal, lengths = _waveforms(4000)
    features, _ = log_mel(signal, lengths, TELEPHONE, 40)
    x = signal[0].double().numpy()
    emphasised = np.append(x[0], x[1:] - 0.97 * x[:-1])
    hann = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(200) / 199)
    frame = 20
    windowed = np.zeros(256)
    windowed[28:228] = emphasised[frame * 80 - 100 : frame * 80 + 100] * hann
    power = np.abs(np.fft.rfft(windowed)) ** 2
    expected = np.log(power @ mel_filterbank(TELEPHONE, 40).double().numpy() + 2.0**-24)
    np.testing.assert_allclose(features[0, frame].numpy(), expected, atol=2e-4)


def test_a_trial_alone_equals_the_trial_padded() -> None:
    signal, lengths = _waveforms(5000, 3121, 81, 2400)
    signal[1, 3121:] = 7.0  # whatever lies beyond the end is ignored
    formants = torch.tensor([1.0, 1.2, 0.85, 0.9])
    for formant in (None, formants):
        features, frames = log_mel(signal, lengths, TELEPHONE, 40, formant)
        assert features.shape == (4, 62, 40)
        for row, length in enumerate(lengths.tolist()):
            own = None if formant is None else formant[row : row + 1]
            alone, alone_frames = log_mel(signal[row : row + 1, :length], lengths[row : row + 1], TELEPHONE, 40, own)
            assert alone_frames.tolist() == [length // 80] == [int(frames[row])]
            torch.testing.assert_close(features[row, : length // 80], alone[0], atol=1e-6, rtol=1e-6)
            assert not features[row, length // 80 :].any()


@pytest.mark.parametrize("num_samples", [1, 79, 80, 100, 159, 160, 399, 400, 401])
def test_recordings_shorter_than_the_window(num_samples: int) -> None:
    signal, lengths = _waveforms(num_samples)
    features, frames = log_mel(signal, lengths, TELEPHONE, 40)
    assert features.shape == (1, log_mel_length(num_samples, 80), 40)
    assert frames.tolist() == [features.shape[1]]
    assert torch.isfinite(features).all()


def test_silence_is_the_floor() -> None:
    features, _ = log_mel(torch.zeros(1, 1600), torch.tensor([1600]), NEMO, 80)
    assert features.shape == (1, 10, 80)
    assert features.unique().tolist() == pytest.approx([math.log(LOG_FLOOR)])


def test_formant_factor_1_changes_nothing_and_others_move_a_resonance() -> None:
    signal, lengths = _waveforms(4000, 4000)
    plain, _ = log_mel(signal, lengths, TELEPHONE, 40)
    same, _ = log_mel(signal, lengths, TELEPHONE, 40, torch.ones(2))
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=0)

    seconds = torch.arange(4000) / 8000
    tones = torch.stack([torch.sin(2 * math.pi * hz * seconds) for hz in (1100.0, 1000.0)])
    warped, _ = log_mel(tones, lengths, TELEPHONE, 40, torch.tensor([1 / 1.1, 1.0]))
    assert warped[0, 20].argmax() == warped[1, 20].argmax()


def test_warped_bands_stay_inside_the_spectrum() -> None:
    banks = warped_filterbanks(TELEPHONE, 40, torch.tensor([0.7, 1.0, 1.3]))
    assert banks.shape == (3, 129, 40)
    assert (banks >= 0).all()
    assert banks.amax(dim=1).min() > 0
    centres = banks.argmax(dim=1)
    assert (centres[0] >= centres[1]).all()
    assert (centres[1] >= centres[2]).all()


def test_mixed_precision_does_not_reach_the_front_end() -> None:
    signal, lengths = _waveforms(1600)
    plain, _ = log_mel(signal, lengths, TELEPHONE, 40)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = log_mel(signal, lengths, TELEPHONE, 40)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


@pytest.mark.parametrize(
    ("config", "num_bands", "message"),
    [
        (LogMelConfig(num_fft=256), 80, "window of 25 ms has 400 samples"),
        (LogMelConfig(num_fft=400), 200, "covers no bin of a 400-point"),
    ],
)
def test_contradictions_are_named(config: LogMelConfig, num_bands: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        log_mel(torch.zeros(1, 1600), torch.tensor([1600]), config, num_bands)

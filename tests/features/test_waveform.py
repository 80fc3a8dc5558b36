"""Speed perturbation: exact lengths, exact tones, and nothing that depends on batch mates."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from sottovoce.features.waveform import change_speed, perturb_speed, resampled_length, uniform_factor


def _generator(row: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + row)


def _other_row(row: int, _: int) -> torch.Generator:
    return _generator(row)


def _tone(num_samples: int, cycles: int) -> torch.Tensor:
    phase = 2 * math.pi * cycles * torch.arange(num_samples, dtype=torch.float64) / num_samples
    return phase.sin().float()


@pytest.mark.parametrize(("num_samples", "factor"), [(1000, 1.25), (1000, 0.8), (999, 1.25), (1001, 0.8), (997, 1.1)])
def test_a_tone_keeps_its_cycles_and_amplitude_in_fewer_or_more_samples(num_samples: int, factor: float) -> None:
    changed = change_speed(_tone(num_samples, 40), factor)
    assert len(changed) == round(num_samples / factor) == resampled_length(num_samples, factor)
    torch.testing.assert_close(changed, _tone(len(changed), 40), atol=1e-5, rtol=0)


def test_what_would_alias_is_dropped() -> None:
    assert change_speed(_tone(1000, 450), 1.25).abs().max() < 1e-5


def test_factor_1_and_one_sample() -> None:
    signal = torch.randn(50, generator=_generator(0))
    assert torch.equal(change_speed(signal, 1.0), signal)
    assert len(change_speed(signal[:1], 3.0)) == 1


def test_factors_fill_their_range() -> None:
    factors = [uniform_factor(0.2, _generator(row)) for row in range(500)]
    assert 0.8 <= min(factors) < 0.81
    assert 1.19 < max(factors) <= 1.2
    assert sum(factors) / 500 == pytest.approx(1.0, abs=0.02)


def test_a_trial_is_changed_the_same_whatever_its_batch_mates() -> None:
    lengths = torch.tensor([800, 500, 650])
    signal = torch.randn(3, 800, generator=_generator(7))
    changed, changed_lengths = perturb_speed(signal, lengths, 0.2, _generator)
    assert changed.shape == (3, int(changed_lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        alone, alone_length = perturb_speed(
            signal[row : row + 1, :length], lengths[row : row + 1], 0.2, partial(_other_row, row)
        )
        assert (
            alone_length.item()
            == changed_lengths[row]
            == resampled_length(length, uniform_factor(0.2, _generator(row)))
        )
        assert torch.equal(changed[row, : alone_length.item()], alone[0])
        assert not changed[row, alone_length.item() :].any()
    again, _ = perturb_speed(signal, lengths, 0.2, _generator)
    assert torch.equal(changed, again)

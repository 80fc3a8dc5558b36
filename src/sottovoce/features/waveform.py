"""Random changes of training waveforms.

Each trial has a generator of its own, so what happens to it depends neither on its batch mates nor on its place
among them. Dimension legend: B trials in a batch, N samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def uniform_factor(spread: float, generator: torch.Generator) -> float:
    """A number drawn uniformly from [1 - spread, 1 + spread]."""
    return 1.0 + spread * (2.0 * float(torch.rand((), generator=generator, device=generator.device)) - 1.0)


def resampled_length(num_samples: int, factor: float) -> int:
    """Samples left of `num_samples` after `change_speed` by `factor`: the nearest whole number, at least 1."""
    return max(round(num_samples / factor), 1)


def change_speed(signal_N: torch.Tensor, factor: float) -> torch.Tensor:
    """The waveform played `factor` times as fast, its pitch and formants raised by `factor`; band-limited.

    Resampling in the frequency domain: a factor above 1 drops what would lie above half the sample rate, one
    below 1 leaves the top of the spectrum empty.
    """
    num_out = resampled_length(len(signal_N), factor)
    if num_out == len(signal_N):
        return signal_N.clone()
    spectrum = torch.fft.rfft(signal_N)[: num_out // 2 + 1]
    changed: torch.Tensor = torch.fft.irfft(spectrum, n=num_out) * (num_out / len(signal_N))
    return changed


def perturb_speed(
    signal_BN: torch.Tensor, lengths_B: torch.Tensor, spread: float, generator: Callable[[int], torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each trial at a speed drawn from [1 - spread, 1 + spread], padded anew, with its new length.

    Args:
        generator: gives the generator of the trial in a row.
    """
    changed = [
        change_speed(signal[:length], uniform_factor(spread, generator(row)))
        for row, (signal, length) in enumerate(zip(signal_BN, lengths_B.tolist(), strict=True))
    ]
    lengths = torch.tensor([len(signal) for signal in changed], device=lengths_B.device)
    return torch.nn.utils.rnn.pad_sequence(changed, batch_first=True), lengths

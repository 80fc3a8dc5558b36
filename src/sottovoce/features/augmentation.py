"""Random changes of training features, one definition each.

Legend: B trials, T bins, C channels. Noise is drawn for valid bins only and from a generator of each trial's own,
so that a trial's augmentation does not depend on its batch mates or on the process that prepares it. The order and
the parameters are those of the official T15 code (nejm-brain-to-text `rnn_trainer.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from sottovoce.core.random import torch_generator
from sottovoce.core.trial import valid_mask
from sottovoce.features.config import AugmentationConfig, MaskConfig


@dataclass(frozen=True)
class Draws:
    """The generators of one part of one optimiser step's batch."""

    seed: int
    step: int
    positions: tuple[int, ...]
    """Place of each trial in the step's global batch."""
    device: torch.device

    @cached_property
    def trials(self) -> tuple[torch.Generator, ...]:
        """One generator a trial."""
        return self._generators()

    def for_corruption(self) -> tuple[torch.Generator, ...]:
        """One generator a trial, independent of `trials`."""
        return self._generators(1)

    def _generators(self, *stream: int) -> tuple[torch.Generator, ...]:
        return tuple(
            torch_generator(self.seed, "augmentation", self.step, 1 + position, *stream, device=self.device)
            for position in self.positions
        )

    def batch_integer(self, high: int) -> int:
        """One number from 0 to `high` - 1, the same for the whole global batch of the step."""
        generator = torch_generator(self.seed, "augmentation", self.step, 0)
        return int(torch.randint(high, (1,), generator=generator))


def add_noise(signal_BTC: torch.Tensor, lengths_B: torch.Tensor, config: AugmentationConfig, draws: Draws) -> None:
    """Gain, white noise, constant offset and random walk, in this order, in place."""
    channels, device = signal_BTC.shape[2], signal_BTC.device
    for row, length, generator in zip(signal_BTC, lengths_B.tolist(), draws.trials, strict=True):
        valid = row[:length]
        if config.gain_std:
            valid.mul_(1 + config.gain_std * torch.randn(channels, generator=generator, device=device))
        if config.white_noise_std:
            noise = torch.randn((length, channels), generator=generator, device=device)
            valid.add_(noise, alpha=config.white_noise_std)
        if config.constant_offset_std:
            valid.add_(config.constant_offset_std * torch.randn(channels, generator=generator, device=device))
        if config.random_walk_std:
            steps = torch.randn((length, channels), generator=generator, device=device)
            valid.add_(steps.cumsum(0), alpha=config.random_walk_std)


def cut_front(signal_BTC: torch.Tensor, lengths_B: torch.Tensor, num_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch without its first `num_bins` bins; every trial keeps at least one."""
    num_bins = min(num_bins, int(lengths_B.min()) - 1)
    return signal_BTC[:, num_bins:], lengths_B - num_bins


def apply_masks(
    signal_BTC: torch.Tensor, lengths_B: torch.Tensor, config: MaskConfig, draws: Draws, along_time: bool
) -> None:
    """Zero up to `num_masks` stretches of bins (or of channels) of a trial, with the given probability, in place."""
    for row, length, generator in zip(signal_BTC, lengths_B.tolist(), draws.trials, strict=True):
        uniform = torch.rand(2 + 2 * config.num_masks, generator=generator, device=row.device).tolist()
        if uniform[0] >= config.probability:
            continue
        size = length if along_time else row.shape[1]
        widest = min(config.max_width, int(config.max_fraction * size))
        for mask in range(1 + int(uniform[1] * config.num_masks)):
            width = int(uniform[2 + 2 * mask] * (widest + 1))
            start = int(uniform[3 + 2 * mask] * (size - width + 1))
            stretch = slice(start, start + width)
            (row[stretch] if along_time else row[:, stretch]).zero_()


def zero_padding(signal_BTC: torch.Tensor, lengths_B: torch.Tensor) -> None:
    """Set every bin beyond its trial's end to 0, in place."""
    size = signal_BTC.shape[1]
    if int(lengths_B.min()) < size:
        signal_BTC.masked_fill_(~valid_mask(lengths_B, size)[:, :, None], 0.0)

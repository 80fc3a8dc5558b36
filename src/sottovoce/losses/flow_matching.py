"""Flow matching from corrupted to clean features, and the corruption that makes the pairs.

Dimension legend: B trials, T bins, C channels. Source: Liu et al. 2022, "Flow straight and fast", equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.trial import valid_mask

VelocityField = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From features [B, T, C], times in [0, 1] [B] and valid bins [B] to velocities [B, T, C]."""
JITTER_KNOT_BINS: Final = 10
"""Bins from one independent time shift to the next; shifts in between are interpolated."""


@dataclass(frozen=True)
class CorruptionConfig:
    """What makes clean features noisy, in the order in which it is applied; 0 switches a part off."""

    jitter_bins: float = 1.0
    """Deviation of the time shift, which varies smoothly along the trial."""
    gain_std: float = 0.1
    """Deviation of the log gain that each channel reaches at the trial's end; it starts at 0 and drifts evenly."""
    noise_std: float = 0.5
    """N(0, std) added to every value."""
    offset_std: float = 0.2
    """N(0, std) added to each channel of a trial."""
    dead_probability: float = 0.02
    """Chance that a channel is 0 throughout the trial."""

    def __post_init__(self) -> None:
        for name in ("jitter_bins", "gain_std", "noise_std", "offset_std"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"training.corruption.{name}={getattr(self, name)}: must be at least 0")
        if not 0 <= self.dead_probability < 1:
            raise ConfigurationError(
                f"training.corruption.dead_probability={self.dead_probability}: must lie in [0, 1)"
            )


def corrupt(
    clean_BTC: torch.Tensor,
    lengths_B: torch.Tensor,
    config: CorruptionConfig,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """A corrupted copy [B, T, C], 0 beyond each trial's end.

    Each trial draws from a generator of its own (on the features' device), so that its corruption depends neither on
    its batch mates nor on the padding.
    """
    corrupted_BTC = torch.zeros_like(clean_BTC)
    for row, clean, length, generator in zip(corrupted_BTC, clean_BTC, lengths_B.tolist(), generators, strict=True):
        if length:
            row[:length] = _corrupt_trial(clean[:length], config, generator)
    return corrupted_BTC


def _corrupt_trial(x_TC: torch.Tensor, config: CorruptionConfig, generator: torch.Generator) -> torch.Tensor:
    length, channels = x_TC.shape

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=x_TC.device, dtype=x_TC.dtype)

    if config.jitter_bins:
        x_TC = _shifted(x_TC, config.jitter_bins * normal(2 + length // JITTER_KNOT_BINS))
    if config.gain_std:
        progress_T = torch.linspace(0, 1, length, device=x_TC.device, dtype=x_TC.dtype)
        x_TC = x_TC * torch.exp(config.gain_std * progress_T[:, None] * normal(channels))
    if config.noise_std:
        x_TC = x_TC + config.noise_std * normal(length, channels)
    if config.offset_std:
        x_TC = x_TC + config.offset_std * normal(channels)
    if config.dead_probability:
        drawn_C = torch.rand(channels, generator=generator, device=x_TC.device)
        x_TC = x_TC.masked_fill(drawn_C < config.dead_probability, 0.0)
    return x_TC


def _shifted(x_TC: torch.Tensor, knots_K: torch.Tensor) -> torch.Tensor:
    """Each bin read from where the interpolated shifts point, between the trial's first and last bin."""
    bins_T = torch.arange(len(x_TC), device=x_TC.device, dtype=x_TC.dtype)
    knot_T = bins_T / JITTER_KNOT_BINS
    left_T = knot_T.long()
    shift_T = torch.lerp(knots_K[left_T], knots_K[left_T + 1], knot_T - left_T)
    at_T = (bins_T + shift_T).clamp(0, len(x_TC) - 1)
    first_T = at_T.long()
    second_T = (first_T + 1).clamp(max=len(x_TC) - 1)
    return torch.lerp(x_TC[first_T], x_TC[second_T], (at_T - first_T)[:, None])


def flow_matching_loss(
    velocity: VelocityField,
    clean_BTC: torch.Tensor,
    corrupted_BTC: torch.Tensor,
    lengths_B: torch.Tensor,
    tau_B: torch.Tensor,
) -> torch.Tensor:
    """Mean over a trial's valid bins and channels of ‖v(x_τ, τ) − (clean − corrupted)‖², float32 [B].

    x_τ = (1 − τ) · corrupted + τ · clean, with `tau_B` drawn from U(0, 1), one a trial. A trial's value depends on the
    trial alone; a trial without valid bins has 0.
    """
    valid_BT1 = valid_mask(lengths_B, clean_BTC.shape[1])[:, :, None]
    clean_BTC, corrupted_BTC = (x.masked_fill(~valid_BT1, 0.0) for x in (clean_BTC, corrupted_BTC))
    between_BTC = torch.lerp(corrupted_BTC, clean_BTC, tau_B[:, None, None].to(clean_BTC.dtype))
    error_BTC = velocity(between_BTC, tau_B, lengths_B).float() - (clean_BTC - corrupted_BTC).float()
    squared_B = error_BTC.square().masked_fill(~valid_BT1, 0.0).sum(dim=(1, 2))
    return squared_B / (lengths_B * clean_BTC.shape[2]).clamp(min=1)


def draw_times(generators: Sequence[torch.Generator], device: torch.device | str = "cpu") -> torch.Tensor:
    """τ ~ U(0, 1) of each trial [B], from the trial's own generator."""
    return torch.stack([torch.rand((), generator=generator, device=device) for generator in generators])
